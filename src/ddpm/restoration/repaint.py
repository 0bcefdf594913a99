"""RePaint (Lugmayr et al. 2022): inpainting with an unconditional model, by resampling."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.restoration.jumps import jump_path, renoise
from ddpm.restoration.operators import Inpainting
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def repaint(
    denoiser: Denoiser,
    y: Tensor,
    operator: Inpainting,
    sigma_y: float,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    jump_length: int = 10,
    jump_repeats: int = 10,
) -> Tensor:
    """Draw x_0 (N, C, H, W) whose known pixels are y's, exactly.

    Each step takes the unknown pixels from p(x_prev | x_t) and the known ones from q(x_prev | y) (eq. 8); jumps back
    up let the two agree. The paper walks 250 steps with jumps of 10, 10 times: some ten evaluations a step.

    Args:
        y: (N, C, H, W), the unknown pixels 0; sigma_y must be 0, since known pixels are taken as they are.
        timesteps: strictly falling, the last -1.
        callback: sees every step down, `Step.index` its place among the `steps`: a jump takes it back.
        jump_length, jump_repeats: the paper's j and r.
    """
    if sigma_y != 0:
        raise UserError("RePaint takes the known pixels as exact; for noisy ones use ddrm or ddnm")
    process, steps = denoiser.process, len(timesteps) - 1
    known = operator.known
    x_t = noise()
    for position, following in pairwise(jump_path(steps, jump_length, jump_repeats)):
        t, t_next = timesteps[position], timesteps[following]
        if following < position:
            x_t = renoise(process.schedule, x_t, t, t_next, noise)
            continue
        prediction = denoiser(x_t, t)
        signal, sigma = process.schedule.signal_noise(t_next)
        if sigma == 0:
            x_prev = torch.where(known, y, prediction.x_0)
        else:
            posterior = process.posterior(t, t_next)
            unknown_part = posterior.mean(prediction.x_0, x_t) + math.sqrt(posterior.variance) * noise()
            x_prev = torch.where(known, signal * y + sigma * noise(), unknown_part)
        if callback:
            callback(Step(position, steps, t, t_next, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t
