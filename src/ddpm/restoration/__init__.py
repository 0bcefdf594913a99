"""Restore degraded images with a generative prior: operators, methods and the batch job.

operator = ddpm.restoration.superresolution((1, 28, 28), 4)
restored = ddpm.restoration.restore(model, y, operator, noise=0.1, samples=8)
restored.mean, restored.std
"""

from ddpm.restoration.deepinv import as_deepinv, from_deepinv, from_deepinv_measurement
from ddpm.restoration.job import RestoreSettings, restore_file, restore_folder
from ddpm.restoration.methods import METHODS, saturation
from ddpm.restoration.operators import (
    Channels,
    CircularBlur,
    Denoising,
    Dense,
    Inpainting,
    Separable,
    WalshHadamard,
    separable_blur,
    superresolution,
)
from ddpm.restoration.posterior import Restored, estimate_noise, restore
from ddpm.restoration.tasks import Task

__all__ = [
    "METHODS",
    "Channels",
    "CircularBlur",
    "Denoising",
    "Dense",
    "Inpainting",
    "RestoreSettings",
    "Restored",
    "Separable",
    "Task",
    "WalshHadamard",
    "as_deepinv",
    "estimate_noise",
    "from_deepinv",
    "from_deepinv_measurement",
    "restore",
    "restore_file",
    "restore_folder",
    "saturation",
    "separable_blur",
    "superresolution",
]
