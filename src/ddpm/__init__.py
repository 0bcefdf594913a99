"""Denoising diffusion probabilistic models: train, sample, watch, judge, restore and edit."""

from ddpm.model import Model, load
from ddpm.randomness import image_generator
from ddpm.restoration.deepinv_bridge import as_deepinv
from ddpm.tracing import trace
from ddpm.viewing.pictures import save_grid

__all__ = ["Model", "as_deepinv", "image_generator", "load", "save_grid", "trace"]
