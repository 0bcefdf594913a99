"""Heun's method: the deterministic sampler of EDM (Karras et al. 2022, algorithm 1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """Trapezoidal steps of d(x/√ᾱ) = ε̂ d(√(1-ᾱ)/√ᾱ), EDM's ODE in its own variables; see `Sampler`.

    Deterministic, second order. Two network evaluations a step, but one where the step ends at the data or starts
    where no signal is left, as Euler's (which is DDIM's): 2S-1 for S steps down to the data.
    """
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        (signal, sigma), (signal_prev, sigma_prev) = map(denoiser.schedule.signal_noise, (t, t_prev))
        x_prev = signal_prev * prediction.x_0 + sigma_prev * prediction.epsilon
        if signal > 0 and sigma_prev > 0:
            change = denoiser(x_prev, t_prev).epsilon - prediction.epsilon
            x_prev = x_prev + 0.5 * (sigma_prev - signal_prev * sigma / signal) * change
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t
