"""Denoising diffusion probabilistic models: train, sample, trace, evaluate, restore and edit."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm import samplers
    from ddpm.common.pixels import save_grid
    from ddpm.common.randomness import image_generator
    from ddpm.data.sources import open_dataset
    from ddpm.diffusion.gaussian import GaussianDiffusion
    from ddpm.diffusion.schedule import NoiseSchedule
    from ddpm.evaluation.evaluate import evaluate
    from ddpm.model import Model, SamplingOptions, load
    from ddpm.plotting.trace import trace
    from ddpm.restoration.deepinv import as_deepinv
    from ddpm.restoration.posterior import restore
    from ddpm.samplers.denoiser import Denoiser
    from ddpm.training.config import load_config
    from ddpm.training.trainer import train

__all__ = [
    "Denoiser",
    "GaussianDiffusion",
    "Model",
    "NoiseSchedule",
    "SamplingOptions",
    "as_deepinv",
    "evaluate",
    "image_generator",
    "load",
    "load_config",
    "open_dataset",
    "restore",
    "samplers",
    "save_grid",
    "trace",
    "train",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Denoiser": "ddpm.samplers.denoiser",
        "GaussianDiffusion": "ddpm.diffusion.gaussian",
        "Model": "ddpm.model",
        "NoiseSchedule": "ddpm.diffusion.schedule",
        "SamplingOptions": "ddpm.model",
        "as_deepinv": "ddpm.restoration.deepinv",
        "evaluate": "ddpm.evaluation.evaluate",
        "image_generator": "ddpm.common.randomness",
        "load": "ddpm.model",
        "load_config": "ddpm.training.config",
        "open_dataset": "ddpm.data.sources",
        "restore": "ddpm.restoration.posterior",
        "samplers": "ddpm.samplers",
        "save_grid": "ddpm.common.pixels",
        "trace": "ddpm.plotting.trace",
        "train": "ddpm.training.trainer",
    },
)
