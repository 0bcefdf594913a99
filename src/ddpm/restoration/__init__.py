"""Restore degraded images with a generative prior: operators, methods and the batch job.

operator = ddpm.restoration.superresolution((1, 28, 28), 4)
restored = ddpm.restoration.restore(model, y, operator, noise=0.1, samples=8)
restored.mean, restored.std
"""

from ddpm.restoration.deepinv_bridge import as_deepinv, from_deepinv, from_deepinv_measurement
from ddpm.restoration.dps import saturation
from ddpm.restoration.items import Settings
from ddpm.restoration.job import restore_file, restore_folder
from ddpm.restoration.methods import METHODS
from ddpm.restoration.noise_level import estimate_noise
from ddpm.restoration.operators import Channels, CircularBlur, Denoising, Dense, Inpainting, Separable, WalshHadamard
from ddpm.restoration.posterior import Restored, restore
from ddpm.restoration.resampling import separable_blur, superresolution
from ddpm.restoration.tasks import Task

__all__ = [
    "METHODS",
    "Channels",
    "CircularBlur",
    "Denoising",
    "Dense",
    "Inpainting",
    "Restored",
    "Separable",
    "Settings",
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
