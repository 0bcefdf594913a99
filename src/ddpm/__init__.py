"""Denoising diffusion probabilistic models: train, sample, trace, evaluate, restore and edit."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm import samplers as samplers
    from ddpm.common.pixels import save_grid as save_grid
    from ddpm.common.randomness import image_generator as image_generator
    from ddpm.data.sources import open_dataset as open_dataset
    from ddpm.diffusion.gaussian import GaussianDiffusion as GaussianDiffusion
    from ddpm.diffusion.schedule import NoiseSchedule as NoiseSchedule
    from ddpm.evaluation.evaluate import evaluate as evaluate
    from ddpm.model import Model as Model
    from ddpm.model import SamplingOptions as SamplingOptions
    from ddpm.model import load as load
    from ddpm.plotting.trace import trace as trace
    from ddpm.restoration.deepinv import as_deepinv as as_deepinv
    from ddpm.restoration.posterior import restore as restore
    from ddpm.samplers.denoiser import Denoiser as Denoiser
    from ddpm.training.config import load_config as load_config
    from ddpm.training.trainer import train as train

__getattr__, __dir__, __all__ = lazy_exports(__name__)
