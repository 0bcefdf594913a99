"""Denoising diffusion probabilistic models: train, sample, trace, evaluate, restore and edit.

The names below are the public interface. Each is imported when it is first used, so `import ddpm` costs nothing and
does not import PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm import samplers
    from ddpm.common.pixels import save_grid
    from ddpm.common.randomness import image_generator
    from ddpm.data import open_dataset
    from ddpm.diffusion.gaussian import GaussianDiffusion
    from ddpm.diffusion.schedule import NoiseSchedule
    from ddpm.evaluation.evaluate import evaluate
    from ddpm.model import Model, SamplingOptions, load
    from ddpm.plotting.trace import trace
    from ddpm.restoration import restore
    from ddpm.restoration.deepinv import as_deepinv
    from ddpm.samplers.denoiser import Denoiser
    from ddpm.training import train
    from ddpm.training.config import load_config

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

_MODULES = {  # where each name is defined
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
    "open_dataset": "ddpm.data",
    "restore": "ddpm.restoration",
    "save_grid": "ddpm.common.pixels",
    "trace": "ddpm.plotting.trace",
    "train": "ddpm.training",
}


def __getattr__(name: str) -> Any:
    if name == "samplers":
        return importlib.import_module("ddpm.samplers")
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
