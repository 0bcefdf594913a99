"""Samplers: one function each.

Ancestral sampling (Ho et al. 2020, algorithm 2), DDIM (Song et al. 2021), DPM-Solver++ for the probability-flow ODE and
for the reverse SDE (Lu et al. 2022), UniPC (Zhao et al. 2023) and Heun's method (Karras et al. 2022, algorithm 1).

DPM-Solver++ and UniPC use half the log-SNR, λ = log(√ᾱ/√(1-ᾱ)), and a step h = λ_prev - λ. Both integrate the linear
part exactly and extrapolate the predicted x_0. Everything is written with e^-h: it is 0 if the step ends at the data
(λ = ∞) or starts at pure noise (λ = -∞). Such a step, and the one after a start at pure noise, is of first order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import Posterior
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.samplers.denoiser import Denoiser, Prediction

Noise = Callable[[], Tensor]  # each call: a fresh standard normal tensor of x_T's shape


@dataclass(frozen=True)
class Step:
    """One step of a sampler, as its callback gets it: from x_t, with the predicted x_0, to x_prev.

    `index` runs from 0 to `steps` - 1. `t_prev` is -1 in the last step of a run that ends at the data, and x_prev is
    then the sample.
    """

    index: int
    steps: int
    t: float
    t_prev: float
    x_t: Tensor
    x_0: Tensor
    x_prev: Tensor


Callback = Callable[[Step], None]


class Sampler(Protocol):
    """A sampler takes x_T (N, C, H, W) from timesteps[0] to timesteps[-1].

    Args:
        denoiser: the network, as `Denoiser`.
        x_T: standard normal noise (or, for editing, any x_t that belongs to timesteps[0]).
        timesteps: S+1 strictly falling numbers for S steps, fractional ones allowed; the last is -1 for the data.
        noise: returns the noise of a step; deterministic samplers never call it, the others once per step, except if
            the step ends at the data.
        callback: called with every `Step`; an exception in it ends the run.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        timesteps: Sequence[float],
        *,
        noise: Noise,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor: ...


@torch.no_grad()
def ancestral(
    denoiser: Denoiser, x_T: Tensor, timesteps: Sequence[float], *, noise: Noise, callback: Callback | None = None
) -> Tensor:
    """x_{t-1} ~ N(μ̃(x̂_0, x_t), σ²), with the variance that `diffusion.variance` names; see `Sampler` for the arguments.

    Skipped timesteps make a shorter chain with β = 1 - ᾱ_t/ᾱ_prev (Nichol & Dhariwal 2021, eq. 19).
    One network evaluation per step. No noise is added in the step that ends at the data.
    """
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        posterior = denoiser.diffusion.posterior(t, t_prev)
        x_prev = posterior.mean(prediction.x_0, x_t)
        if t_prev > -1:
            x_prev = x_prev + _deviation(denoiser.diffusion.variance, posterior, prediction) * noise()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


def _deviation(variance: str, posterior: Posterior, prediction: Prediction) -> float | Tensor:
    """Return σ: √β̃, √β, or the network's interpolation of the two in log space (Nichol & Dhariwal 2021, eq. 15)."""
    if variance == "fixed_small":
        return math.sqrt(posterior.variance)
    if variance == "fixed_large":
        return math.sqrt(posterior.beta)
    assert prediction.variance_fraction is not None  # a Denoiser gives it if the variance is learned
    low, high = math.log(posterior.variance), math.log(posterior.beta)
    return (0.5 * (low + (high - low) * prediction.variance_fraction)).exp()


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
    evaluation per step. If x̂_0 is clipped, ε̂ is computed from the clipped x̂_0.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be between 0 and 1, not {eta}")
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        alpha, sigma = denoiser.schedule.alpha_sigma(t_prev)
        added = eta * math.sqrt(denoiser.diffusion.posterior(t, t_prev).variance)
        x_prev = alpha * prediction.x_0 + math.sqrt(sigma**2 - added**2) * prediction.epsilon
        if added > 0:
            x_prev = x_prev + added * noise()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


@torch.no_grad()
def dpm_solver(
    denoiser: Denoiser, x_T: Tensor, timesteps: Sequence[float], *, noise: Noise, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M): x_prev = (σ_prev/σ) x_t + √ᾱ_prev (1 - e^-h) D (algorithm 2); see `Sampler`.

    Deterministic, second order, one network evaluation per step.
    """
    steps, x_t, x_0_last, h_last = len(timesteps) - 1, x_T, None, math.inf
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        x_0 = denoiser(x_t, t).x_0
        (alpha, sigma), (alpha_prev, sigma_prev) = map(denoiser.schedule.alpha_sigma, (t, t_prev))
        exp_h = (alpha * sigma_prev) / (alpha_prev * sigma)  # e^-h
        D, h_last = extrapolate(x_0, x_0_last, exp_h, h_last)
        x_prev = (sigma_prev / sigma) * x_t + alpha_prev * (1 - exp_h) * D
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, x_0, x_prev))
        x_t, x_0_last = x_prev, x_0
    return x_t


@torch.no_grad()
def dpm_solver_sde(
    denoiser: Denoiser, x_T: Tensor, timesteps: Sequence[float], *, noise: Noise, callback: Callback | None = None
) -> Tensor:
    """SDE-DPM-Solver++(2M): x_prev = (σ_prev/σ) e^-h x_t + √ᾱ_prev (1 - e^-2h) D + σ_prev √(1 - e^-2h) z.

    Stochastic, one network evaluation per step; see `Sampler`. Without the extrapolation it is DDIM with η = 1.
    """
    steps, x_t, x_0_last, h_last = len(timesteps) - 1, x_T, None, math.inf
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        x_0 = denoiser(x_t, t).x_0
        (alpha, sigma), (alpha_prev, sigma_prev) = map(denoiser.schedule.alpha_sigma, (t, t_prev))
        exp_h = (alpha * sigma_prev) / (alpha_prev * sigma)
        D, h_last = extrapolate(x_0, x_0_last, exp_h, h_last)
        x_prev = (sigma_prev / sigma) * exp_h * x_t + alpha_prev * (1 - exp_h**2) * D
        if sigma_prev > 0:
            x_prev = x_prev + sigma_prev * math.sqrt(1 - exp_h**2) * noise()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, x_0, x_prev))
        x_t, x_0_last = x_prev, x_0
    return x_t


def extrapolate(x_0: Tensor, x_0_last: Tensor | None, exp_h: float, h_last: float) -> tuple[Tensor, float]:
    """Return D = x̂_0 + h/(2 h_last) (x̂_0 - x̂_0_last), x̂_0 at the middle of the step, and h for the next step."""
    h = -math.log(exp_h) if exp_h > 0 else math.inf
    if x_0_last is None or math.isinf(h) or math.isinf(h_last):
        return x_0, h
    return torch.lerp(x_0_last, x_0, 1 + h / (2 * h_last)), h


@torch.no_grad()
def unipc(
    denoiser: Denoiser, x_T: Tensor, timesteps: Sequence[float], *, noise: Noise, callback: Callback | None = None
) -> Tensor:
    """UniPC-2 with the paper's B(h) = e^-h - 1; see `Sampler`. Deterministic, one network evaluation per step.

    The prediction at the new x_t also corrects the step that led to it, so the corrector costs no evaluation of its
    own.
    """
    steps, x_t, link = len(timesteps) - 1, x_T, None
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        x_0 = denoiser(x_t, t).x_0
        if link is not None:
            x_t = link.corrected(x_0)
        link = _Link(denoiser.schedule, t, t_prev, x_t, x_0, link)
        x_prev = link.predicted()
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, x_0, x_prev))
        x_t = x_prev
    return x_t


class _Link:
    """One step in its two states: predicted (the paper's UniP-2), then corrected (its UniC-2).

    Both are x = (σ_prev/σ) x_t + √ᾱ_prev (1 - e^-h) x̂_0 - √ᾱ_prev B(h) Σ ρ_m D_m, where D_1 is the slope of x̂_0
    towards the last step and D_2, known only to the corrector, the slope towards the next. The first step, a step of
    infinite h (from pure noise, or to the data) and the step after it have no D_1; infinite h has no D_2 either.
    """

    def __init__(
        self, schedule: NoiseSchedule, t: float, t_prev: float, x_t: Tensor, x_0: Tensor, last: "_Link | None"
    ):
        (alpha, sigma), (alpha_prev, sigma_prev) = map(schedule.alpha_sigma, (t, t_prev))
        exp_h = (alpha * sigma_prev) / (alpha_prev * sigma)
        self.h = -math.log(exp_h) if exp_h > 0 else math.inf
        self.first_order = (sigma_prev / sigma) * x_t + alpha_prev * (1 - exp_h) * x_0
        self.x_0, self.D_1, self.r = x_0, None, 0.0
        if not math.isfinite(self.h):
            return
        self.B = math.expm1(-self.h)
        self.scale = -alpha_prev * self.B
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
        # ρ_1 + ρ_2 = b_1 and r ρ_1 + ρ_2 = b_2, b from the φ-functions at -h: exact if x̂_0 is quadratic in λ
        phi_2 = math.expm1(-self.h) / -self.h - 1
        b_1, b_2 = phi_2 / self.B, 2 * (phi_2 / -self.h - 0.5) / self.B
        rho_1 = (b_1 - b_2) / (1 - self.r)
        return self.first_order + self.scale * (rho_1 * self.D_1 + (b_1 - rho_1) * D_2)


# EDM starts at σ = 80, Ho's linear schedule at 157. A cosine or zero-terminal-SNR schedule starts at 2·10⁴ or ∞: there
# x_t holds nothing of the image, and the trapezoid would amplify the difference of two guesses by as much.
SIGMA_MAX = 200.0


@torch.no_grad()
def heun(
    denoiser: Denoiser, x_T: Tensor, timesteps: Sequence[float], *, noise: Noise, callback: Callback | None = None
) -> Tensor:
    """Trapezoidal steps of d(x/√ᾱ) = ε̂ d(√(1-ᾱ)/√ᾱ), EDM's ODE in its own variables; see `Sampler`.

    Deterministic, second order. Two network evaluations per step, except the last, which ends at the data and is an
    Euler step (that is, DDIM): 2S-1 for S steps. A step from beyond `SIGMA_MAX` is an Euler step too, and saves one.
    """
    steps, x_t = len(timesteps) - 1, x_T
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        (alpha, sigma), (alpha_prev, sigma_prev) = map(denoiser.schedule.alpha_sigma, (t, t_prev))
        x_prev = alpha_prev * prediction.x_0 + sigma_prev * prediction.epsilon
        if sigma_prev > 0 and sigma <= SIGMA_MAX * alpha:
            change = denoiser(x_prev, t_prev).epsilon - prediction.epsilon
            x_prev = x_prev + 0.5 * (sigma_prev - alpha_prev * sigma / alpha) * change
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t
