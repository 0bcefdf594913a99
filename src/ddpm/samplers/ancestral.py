"""Ancestral sampling: algorithm 2 of Ho et al. 2020, on all timesteps or on some of them."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.process.gaussian import Posterior
from ddpm.samplers.denoiser import Denoiser, Prediction
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def ancestral(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """x_{t-1} ~ N(μ̃(x̂_0, x_t), σ²), with the variance that the process names; see `Sampler` for the arguments.

    Left-out timesteps make a shorter chain with β = 1 - ᾱ_t/ᾱ_prev (Nichol & Dhariwal 2021, eq. 19).
    One network evaluation a step. No noise is added in the step that ends at the data.
    """
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        posterior = denoiser.process.posterior(t, t_prev)
        x_prev = posterior.mean(prediction.x_0, x_t)
        if t_prev >= 0:
            x_prev = x_prev + _deviation(denoiser.process.variance, posterior, prediction) * noise()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


def _deviation(variance: str, posterior: Posterior, prediction: Prediction) -> float | Tensor:
    """σ: √β̃, √β, or between the two in log-space where the network says so (Nichol & Dhariwal 2021, eq. 15)."""
    if variance == "fixed_small":
        return math.sqrt(posterior.variance)
    if variance == "fixed_large":
        return math.sqrt(posterior.beta)
    assert prediction.variance_fraction is not None  # a Denoiser gives it wherever the variance is learned
    low, high = math.log(posterior.variance), math.log(posterior.beta)
    return (0.5 * (low + (high - low) * prediction.variance_fraction)).exp()
