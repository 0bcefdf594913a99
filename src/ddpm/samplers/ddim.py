"""Denoising diffusion implicit models (Song, Meng & Ermon 2021)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """x_prev = √ᾱ_prev x̂_0 + √(1-ᾱ_prev-σ²) ε̂ + σ z, with σ = η √β̃ (eq. 12 and 16); see `Sampler`.

    `eta`: 0 is deterministic and of first order, 1 is ancestral sampling with the small variance. One network
    evaluation a step. Where x̂_0 is clipped, ε̂ is the one that belongs to the clipped x̂_0.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta lies between 0 and 1, not at {eta}")
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        signal, sigma = denoiser.schedule.signal_noise(t_prev)
        added = eta * math.sqrt(denoiser.process.posterior(t, t_prev).variance)
        x_prev = signal * prediction.x_0 + math.sqrt(sigma**2 - added**2) * prediction.epsilon
        if added > 0:
            x_prev = x_prev + added * noise()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t
