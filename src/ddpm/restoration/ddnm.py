"""Denoising diffusion null-space models, DDNM and DDNM+ (Wang, Yu & Zhang 2023)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.restoration.ddrm import Evidence, check_share
from ddpm.restoration.jumps import jump_path, renoise
from ddpm.restoration.operator import LinearOperator, SpectralOperator
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def ddnm(
    denoiser: Denoiser,
    y: Tensor,
    operator: LinearOperator,
    sigma_y: float,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.85,
    travel_length: int = 1,
    travel_repeats: int = 1,
) -> Tensor:
    """Draw x_0 (N, C, H, W) given y: at every step the range-space part of x̂_0 is replaced by the measured one.

    σ_y = 0: DDNM, x̂_0 - H⁺(H x̂_0 - y) for any linear operator (eq. 13); the last x̂_0 satisfies H x = y.
    σ_y > 0: DDNM+, which needs the singular values: the correction and the noise of each direction are scaled so
    that y's own noise is accounted for (eq. 17-18 and appendix). Its step is DDRM's with η_b = 1; what differs is
    that it starts from pure noise and may travel in time.

    Args:
        y: (N, *measurement_shape); sigma_y: its noise, in y's units (on the [-1, 1] scale of images).
        timesteps: strictly falling, the last -1.
        callback: sees every step down, `Step.index` its place among the `steps`: time travel takes it back.
        eta: how much of each step's noise is fresh (DDIM's η on the whole 1-ᾱ).
        travel_length, travel_repeats: the time-travel trick: go back up `travel_length` steps and down again, so
            that each stretch is walked `travel_repeats` times.
    """
    check_share("eta", eta)
    schedule, steps = denoiser.schedule, len(timesteps) - 1
    evidence = None
    if sigma_y > 0:
        if not isinstance(operator, SpectralOperator):
            raise UserError("DDNM+ needs an operator with a known singular value decomposition; use dps for noisy y")
        evidence = Evidence(operator, y, sigma_y)
    x_t = noise()
    for position, following in pairwise(jump_path(steps, travel_length, travel_repeats)):
        t, t_next = timesteps[position], timesteps[following]
        if following < position:
            x_t = renoise(schedule, x_t, t, t_next, noise)
            continue
        prediction = denoiser(x_t, t)
        signal, sigma = schedule.signal_noise(t_next)
        fresh = noise() if t_next >= 0 else None
        if evidence:
            x_prev = evidence.step(prediction, signal, sigma, fresh, eta, eta_b=1.0)
        else:
            x_prev = prediction.x_0 - operator.H_pinv(operator.H(prediction.x_0) - y)
            if fresh is not None:
                x_prev = signal * x_prev + sigma * (eta * fresh + (1 - eta**2) ** 0.5 * prediction.epsilon)
        if callback:
            callback(Step(position, steps, t, t_next, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t
