"""DPM-Solver++ (Lu et al. 2022b): second order, multistep, for the probability-flow ODE and for the reverse SDE.

With half the log-SNR, λ = log(√ᾱ/√(1-ᾱ)), and a step h = λ_prev - λ, both integrate the linear part exactly and
extrapolate x̂_0 linearly from this step and the one before. All is written with e^-h, which is 0 where the step
ends at the data (λ = ∞) or starts where no signal is left (λ = -∞); such a step, and the one after the latter, has
no second point to extrapolate from and is of first order.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def dpm_solver(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M): x_prev = (σ_prev/σ) x_t + √ᾱ_prev (1 - e^-h) D (algorithm 2); see `Sampler`.

    Deterministic, second order, one network evaluation a step.
    """
    steps, x_t, x_0_last, h_last = len(timesteps) - 1, x_T, None, math.inf
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        x_0 = denoiser(x_t, t).x_0
        (signal, sigma), (signal_prev, sigma_prev) = map(denoiser.schedule.signal_noise, (t, t_prev))
        exp_h = (signal * sigma_prev) / (signal_prev * sigma)  # e^-h
        D, h_last = extrapolate(x_0, x_0_last, exp_h, h_last)
        x_prev = (sigma_prev / sigma) * x_t + signal_prev * (1 - exp_h) * D
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, x_0, x_prev))
        x_t, x_0_last = x_prev, x_0
    return x_t


@torch.no_grad()
def dpm_solver_sde(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M): x_prev = (σ_prev/σ) e^-h x_t + √ᾱ_prev (1 - e^-2h) D + σ_prev √(1 - e^-2h) z.

    Stochastic, one network evaluation a step; see `Sampler`. Without the extrapolation it is DDIM with η = 1.
    """
    steps, x_t, x_0_last, h_last = len(timesteps) - 1, x_T, None, math.inf
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        x_0 = denoiser(x_t, t).x_0
        (signal, sigma), (signal_prev, sigma_prev) = map(denoiser.schedule.signal_noise, (t, t_prev))
        exp_h = (signal * sigma_prev) / (signal_prev * sigma)
        D, h_last = extrapolate(x_0, x_0_last, exp_h, h_last)
        x_prev = (sigma_prev / sigma) * exp_h * x_t + signal_prev * (1 - exp_h**2) * D
        if sigma_prev > 0:
            x_prev = x_prev + sigma_prev * math.sqrt(1 - exp_h**2) * noise()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, x_0, x_prev))
        x_t, x_0_last = x_prev, x_0
    return x_t


def extrapolate(x_0: Tensor, x_0_last: Tensor | None, exp_h: float, h_last: float) -> tuple[Tensor, float]:
    """D = x̂_0 + h/(2 h_last) (x̂_0 - x̂_0_last), x̂_0 at the middle of the step, and h for the next one."""
    h = -math.log(exp_h) if exp_h > 0 else math.inf
    if x_0_last is None or math.isinf(h) or math.isinf(h_last):
        return x_0, h
    return torch.lerp(x_0_last, x_0, 1 + h / (2 * h_last)), h
