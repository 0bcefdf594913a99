"""Heun's method: the deterministic sampler of EDM (Karras et al. 2022, algorithm 1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step

# EDM starts at σ = 80, Ho's linear schedule at 157. A cosine or zero-terminal-SNR schedule goes on to 2·10⁴ or ∞, where
# x_t says nothing of the image and the trapezoid blows the difference of two guesses up by as much.
SIGMA_MAX = 200.0


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

    Deterministic, second order. Two network evaluations a step but the last, which ends at the data and is Euler's
    (that is, DDIM's): 2S-1 for S steps. A step from beyond `SIGMA_MAX` is Euler's as well, and saves one more.
    """
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        (signal, sigma), (signal_prev, sigma_prev) = map(denoiser.schedule.signal_noise, (t, t_prev))
        x_prev = signal_prev * prediction.x_0 + sigma_prev * prediction.epsilon
        if sigma_prev > 0 and sigma <= SIGMA_MAX * signal:
            change = denoiser(x_prev, t_prev).epsilon - prediction.epsilon
            x_prev = x_prev + 0.5 * (sigma_prev - signal_prev * sigma / signal) * change
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t
