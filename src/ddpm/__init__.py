"""Denoising diffusion probabilistic models: train, sample, watch, judge, restore and edit."""

from ddpm.common.pixels import save_grid
from ddpm.common.randomness import image_generator
from ddpm.model import Model, load
from ddpm.plotting.trace import trace
from ddpm.restoration.deepinv import as_deepinv

__all__ = ["Model", "as_deepinv", "image_generator", "load", "save_grid", "trace"]
