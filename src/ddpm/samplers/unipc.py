"""UniPC (Zhao et al. 2023): predictor-corrector of second order, multistep, predicting x_0."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.process.schedule import NoiseSchedule
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Callback, Noise, Step

Variant = Literal["bh1", "bh2"]


@torch.no_grad()
def unipc(
    denoiser: Denoiser,
    x_T: Tensor,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    variant: Variant = "bh2",
) -> Tensor:
    """UniPC-2; see `Sampler`. Deterministic, one network evaluation a step.

    What the network says of the predicted x_t also corrects the step that led there, so the corrector costs no
    evaluation of its own. `variant` is the paper's B(h): "bh2" (e^-h - 1) or "bh1" (-h).
    """
    if variant not in get_args(Variant):
        raise UserError(f"unipc's variant is bh1 or bh2, not {variant!r}")
    steps, x_t, link = len(timesteps) - 1, x_T, None
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        x_0 = denoiser(x_t, t).x_0
        if link is not None:
            x_t = link.corrected(x_0)
        link = _Link(denoiser.schedule, t, t_prev, x_t, x_0, link, variant)
        x_prev = link.predicted()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, x_0, x_prev))
        x_t = x_prev
    return x_t


class _Link:
    """One step in its two states: predicted (the paper's UniP-2), then corrected (its UniC-2).

    Both are x = (σ_prev/σ) x_t + √ᾱ_prev (1 - e^-h) x̂_0 - √ᾱ_prev B(h) Σ ρ_m D_m, where D_1 is the slope of x̂_0
    towards the last step and D_2, known only to the corrector, that towards the next. The first step, one of
    infinite h (from no signal, or to the data) and the one after it have no D_1; infinite h has no D_2 either.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        t: float,
        t_prev: float,
        x_t: Tensor,
        x_0: Tensor,
        last: "_Link | None",
        variant: Variant,
    ):
        (signal, sigma), (signal_prev, sigma_prev) = map(schedule.signal_noise, (t, t_prev))
        exp_h = (signal * sigma_prev) / (signal_prev * sigma)
        self.h = -math.log(exp_h) if exp_h > 0 else math.inf
        self.first_order = (sigma_prev / sigma) * x_t + signal_prev * (1 - exp_h) * x_0
        self.x_0, self.D_1, self.r = x_0, None, 0.0
        if not math.isfinite(self.h):
            return
        self.B = math.expm1(-self.h) if variant == "bh2" else -self.h
        self.scale = -signal_prev * self.B
        if last is not None and math.isfinite(last.h):
            self.r = -last.h / self.h
            self.D_1 = (last.x_0 - x_0) / self.r

    def predicted(self) -> Tensor:
        return self.first_order if self.D_1 is None else self.first_order + (0.5 * self.scale) * self.D_1

    def corrected(self, x_0_next: Tensor) -> Tensor:
        if not math.isfinite(self.h):
            return self.first_order
        D_2 = x_0_next - self.x_0
        if self.D_1 is None:
            return self.first_order + (0.5 * self.scale) * D_2
        # ρ_1 + ρ_2 = b_1 and r ρ_1 + ρ_2 = b_2, b from the φ-functions at -h: exact where x̂_0 is quadratic in λ
        phi_2 = math.expm1(-self.h) / -self.h - 1
        b_1, b_2 = phi_2 / self.B, 2 * (phi_2 / -self.h - 0.5) / self.B
        rho_1 = (b_1 - b_2) / (1 - self.r)
        return self.first_order + self.scale * (rho_1 * self.D_1 + (b_1 - rho_1) * D_2)
