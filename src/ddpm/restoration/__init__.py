"""Restore degraded images with a generative prior: operators, methods and the batch job.

operator = ddpm.restoration.superresolution((1, 28, 28), 4)
restored = ddpm.restoration.restore(model, y, operator, noise=0.1, samples=8)
restored.mean, restored.std
"""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.restoration.deepinv import as_deepinv as as_deepinv
    from ddpm.restoration.deepinv import from_deepinv as from_deepinv
    from ddpm.restoration.deepinv import from_deepinv_measurement as from_deepinv_measurement
    from ddpm.restoration.job import RestoreSettings as RestoreSettings
    from ddpm.restoration.job import restore_file as restore_file
    from ddpm.restoration.job import restore_folder as restore_folder
    from ddpm.restoration.methods import METHODS as METHODS
    from ddpm.restoration.methods import saturation as saturation
    from ddpm.restoration.operators import Channels as Channels
    from ddpm.restoration.operators import CircularBlur as CircularBlur
    from ddpm.restoration.operators import Denoising as Denoising
    from ddpm.restoration.operators import Dense as Dense
    from ddpm.restoration.operators import Inpainting as Inpainting
    from ddpm.restoration.operators import Separable as Separable
    from ddpm.restoration.operators import WalshHadamard as WalshHadamard
    from ddpm.restoration.operators import separable_blur as separable_blur
    from ddpm.restoration.operators import superresolution as superresolution
    from ddpm.restoration.posterior import Restored as Restored
    from ddpm.restoration.posterior import estimate_noise as estimate_noise
    from ddpm.restoration.posterior import restore as restore
    from ddpm.restoration.tasks import Task as Task

__getattr__, __dir__, __all__ = lazy_exports(__name__)
