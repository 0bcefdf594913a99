"""Diffusion posterior sampling (Chung et al. 2023): any differentiable forward function, linear or not."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step

Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> measurements (N, ...), differentiable


def dps(
    denoiser: Denoiser,
    y: Tensor,
    operator: Forward,
    sigma_y: float,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Draw x_0 (N, C, H, W) given y ≈ A(x): ancestral steps, each pulled down the gradient of ‖y - A(x̂_0(x_t))‖.

    The paper's algorithm 1, with its step size ζ/‖y - A(x̂_0)‖ on the squared norm. σ_y enters only through that
    normalisation, so `scale` (ζ) is a matter of the task; the paper takes 0.3 to 1 for 1,000 steps.

    Args:
        y: (N, ...), what `operator` gives for an image.
        operator: differentiable; e.g. a `LinearOperator`, `saturation`, or any function of yours.
        timesteps: strictly falling, the last -1. The guidance is small a step: use hundreds.
    """
    steps, x_t = len(timesteps) - 1, noise()
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            prediction = denoiser(x_t, t)
            residual = (y - operator(prediction.x_0)).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(residual.sum(), x_t)  # each image's own: images do not mix
        with torch.no_grad():
            posterior = denoiser.process.posterior(t, t_prev)
            x_prev = posterior.mean(prediction.x_0, x_t)
            if t_prev >= 0:
                x_prev = x_prev + math.sqrt(posterior.variance) * noise()
            x_prev = x_prev - scale * gradient
        if callback:
            callback(Step(i, steps, t, t_prev, x_t.detach(), prediction.x_0.detach(), x_prev))
        x_t = x_prev
    return x_t


def saturation(gain: float, low: float = -1.0, high: float = 1.0) -> Forward:
    """An over-exposed sensor: y = gain·x on the [0, 1] scale, cut off at the ends; the example of a non-linear task."""

    def expose(x: Tensor) -> Tensor:
        return (gain * (x + 1) - 1).clamp(low, high)

    return expose
