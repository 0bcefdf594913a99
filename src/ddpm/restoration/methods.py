"""Restoration methods and the degradations that each one can undo.

DDRM (Kawar et al. 2022), DDNM and DDNM+ (Wang et al. 2023), DPS (Chung et al. 2023), RePaint (Lugmayr et al. 2022) and
the time-travel schedule that RePaint and DDNM share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.common.errors import UserError, nearest
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.restoration.operator import LinearOperator, SpectralOperator
from ddpm.restoration.operators import Inpainting
from ddpm.samplers.algorithms import Callback, Noise, Step
from ddpm.samplers.denoiser import Denoiser, Prediction


def jump_path(steps: int, length: int, repeats: int) -> list[int]:
    """Positions on a grid of `steps` steps in the order of the walk, from 0 (noise) to `steps` (data).

    After every `length` steps the walk jumps back `length` positions, `repeats` - 1 times, before it continues
    (Lugmayr et al. 2022, algorithm 1 and appendix B). It never jumps back from the data itself.
    """
    if length < 1 or repeats < 1:
        raise UserError(f"jump length and repeats must be at least 1, not {length} and {repeats}")
    last = steps - 1
    left = dict.fromkeys(range(last, length - 1, -length), repeats - 1)
    path, position = [0], 0
    while position < last:
        position += 1
        path.append(position)
        if left.get(position, 0) > 0:
            left[position] -= 1
            for _ in range(length):
                position -= 1
                path.append(position)
    return [*path, steps]


def renoise(schedule: NoiseSchedule, x: Tensor, t: float, t_up: float, noise: Noise) -> Tensor:
    """Sample x_{t_up} ~ q(x_{t_up} | x_t) for t_up > t: √(ᾱ_up/ᾱ_t) x_t + √(1 - ᾱ_up/ᾱ_t) n."""
    kept = schedule.alpha_bar(t_up) / schedule.alpha_bar(t)
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * noise()


@torch.no_grad()
def ddrm(
    denoiser: Denoiser,
    y: Tensor,
    operator: SpectralOperator,
    sigma_y: float,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.85,
    eta_b: float = 1.0,
) -> Tensor:
    """Sample x_0 given y = H x + σ_y n; one network evaluation per step, and 20 steps are enough. See `Method`.

    `noise` is called once at the start, then once per step except the last. eta, eta_b: the paper's η and η_b (eq. 8),
    which chooses 0.85 and 1.
    """
    check_fraction("eta", eta)
    check_fraction("eta_b", eta_b)
    schedule, steps = denoiser.schedule, len(timesteps) - 1
    measurement = SpectralMeasurement(operator, y, sigma_y)
    x_t = measurement.start(*schedule.alpha_sigma(timesteps[0]), noise())
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        fresh = noise() if t_prev >= 0 else None
        x_prev = measurement.step(prediction, *schedule.alpha_sigma(t_prev), fresh, eta, eta_b)
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


def check_fraction(name: str, value: float) -> None:
    """Raise UserError if the option is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1, not {value}")


class SpectralMeasurement:
    """The measurement y in H's spectral coordinates, where each direction is a scalar problem.

    ȳ = Σ⁺Uᵀy is x̄ = Vᵀx with noise of deviation σ_y/s. While x_t is noisier than that, ȳ is more accurate than x̂_0
    and replaces it. Afterwards x̂_0 is pulled towards ȳ. Directions that H does not see are sampled as in DDIM.

    The paper's σ_t is √((1-ᾱ)/ᾱ) here and its x is x_t/√ᾱ. Its equations are multiplied by √ᾱ, so that a schedule may
    end at ᾱ = 0.
    """

    def __init__(self, operator: SpectralOperator, y: Tensor, sigma_y: float):
        self.operator, self.seen = operator, operator.seen
        self.y_bar = operator.inverse_singulars * operator.Ut(y)
        self.sigma_bar = sigma_y * operator.inverse_singulars

    def start(self, signal: float, sigma: float, noise: Tensor) -> Tensor:
        """Return x_T (eq. 7): ȳ plus the missing noise, or pure noise if ȳ is noisier than x_T or unknown."""
        usable = self.seen & (signal * self.sigma_bar <= sigma)
        lacking = (sigma**2 - (signal * self.sigma_bar) ** 2).clamp(min=0).sqrt()
        bar = self.operator.Vt(noise)
        return sigma * noise + self.operator.V(torch.where(usable, signal * self.y_bar + (lacking - sigma) * bar, 0.0))

    def step(
        self, prediction: Prediction, signal: float, sigma: float, noise: Tensor | None, eta: float, eta_b: float
    ) -> Tensor:
        """Return x_prev (eq. 8).

        signal, sigma: √ᾱ and √(1-ᾱ) of x_prev. noise: standard normal, or None at the last step.
        """
        z = torch.zeros_like(prediction.x_0) if noise is None else noise
        root = (1 - eta**2) ** 0.5
        unseen = signal * prediction.x_0 + sigma * (root * prediction.epsilon + eta * z)

        x_0, z = self.operator.Vt(prediction.x_0), self.operator.Vt(z)
        known_noise = signal * self.sigma_bar
        pull = sigma * root / known_noise.clamp(min=1e-30)
        noisier = signal * torch.lerp(x_0, self.y_bar, pull) + eta * sigma * z  # ȳ is noisier than x_prev may be
        lacking = (sigma**2 - (eta_b * known_noise) ** 2).clamp(min=0).sqrt()
        trusted = signal * torch.lerp(x_0, self.y_bar, eta_b) + lacking * z
        measured = torch.where(known_noise > sigma, noisier, trusted)
        return unseen + self.operator.V(torch.where(self.seen, measured - self.operator.Vt(unseen), 0.0))


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
    """Sample x_0 given y: each step replaces the range-space part of x̂_0 by the measured one. See `Method`.

    σ_y = 0: DDNM, x̂_0 - H⁺(H x̂_0 - y) for any linear operator (eq. 13). The last x̂_0 satisfies H x = y.
    σ_y > 0: DDNM+, which needs the singular values. The correction and the noise of each direction are scaled to
    account for y's own noise (eq. 17-18 and appendix). Its step is DDRM's with η_b = 1; but it starts from pure noise
    and may travel in time.

    Args:
        eta: the fraction of each step's noise that is fresh (DDIM's η, applied to all of 1-ᾱ).
        travel_length, travel_repeats: time travel: jump back `travel_length` steps and denoise again, so that each
            section is walked `travel_repeats` times.
    """
    check_fraction("eta", eta)
    schedule, steps = denoiser.schedule, len(timesteps) - 1
    measurement = None
    if sigma_y > 0:
        if not isinstance(operator, SpectralOperator):
            raise UserError("DDNM+ needs an operator with a known singular value decomposition; use dps for noisy y")
        measurement = SpectralMeasurement(operator, y, sigma_y)
    x_t = noise()
    for position, following in pairwise(jump_path(steps, travel_length, travel_repeats)):
        t, t_next = timesteps[position], timesteps[following]
        if following < position:
            x_t = renoise(schedule, x_t, t, t_next, noise)
            continue
        prediction = denoiser(x_t, t)
        signal, sigma = schedule.alpha_sigma(t_next)
        fresh = noise() if t_next >= 0 else None
        if measurement:
            x_prev = measurement.step(prediction, signal, sigma, fresh, eta, eta_b=1.0)
        else:
            x_prev = prediction.x_0 - operator.H_pinv(operator.H(prediction.x_0) - y)
            if fresh is not None:
                x_prev = signal * x_prev + sigma * (eta * fresh + (1 - eta**2) ** 0.5 * prediction.epsilon)
        if callback:
            callback(Step(position, steps, t, t_next, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


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
    """Sample x_0 given y ≈ A(x): ancestral steps, each moved down the gradient of ‖y - A(x̂_0(x_t))‖. See `Method`.

    The paper's algorithm 1, with its step size ζ/‖y - A(x̂_0)‖ on the squared norm. σ_y itself is not used, so the
    best `scale` (ζ) depends on the task; the paper takes 0.3 to 1 for 1,000 steps. Each step moves only a little: use
    hundreds. `operator` is any differentiable function: a `LinearOperator`, `saturation`, or your own.
    """
    steps, x_t = len(timesteps) - 1, noise()
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            prediction = denoiser(x_t, t)
            residual = (y - operator(prediction.x_0)).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(residual.sum(), x_t)  # the sum keeps each image's own gradient
        with torch.no_grad():
            posterior = denoiser.diffusion.posterior(t, t_prev)
            x_prev = posterior.mean(prediction.x_0, x_t)
            if t_prev >= 0:
                x_prev = x_prev + math.sqrt(posterior.variance) * noise()
            x_prev = x_prev - scale * gradient
        if callback:
            callback(Step(i, steps, t, t_prev, x_t.detach(), prediction.x_0.detach(), x_prev))
        x_t = x_prev
    return x_t


def saturation(gain: float, low: float = -1.0, high: float = 1.0) -> Forward:
    """An overexposed sensor, as a non-linear forward function: y = gain·x on the [0, 1] scale, clipped at both ends."""

    def expose(x: Tensor) -> Tensor:
        return (gain * (x + 1) - 1).clamp(low, high)

    return expose


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
    """Sample x_0 whose known pixels equal y's exactly, so σ_y must be 0. See `Method`.

    Each step takes the unknown pixels from p(x_prev | x_t) and the known ones from q(x_prev | y) (eq. 8). Jumps
    back to more noise harmonise the two: `jump_length` and `jump_repeats` are the paper's j and r. It takes 250 steps
    with jumps of 10, each 10 times: about ten network evaluations per step.
    """
    if sigma_y != 0:
        raise UserError("RePaint takes the known pixels as exact; for noisy ones use ddrm or ddnm")
    diffusion, steps = denoiser.diffusion, len(timesteps) - 1
    known = operator.known
    x_t = noise()
    for position, following in pairwise(jump_path(steps, jump_length, jump_repeats)):
        t, t_next = timesteps[position], timesteps[following]
        if following < position:
            x_t = renoise(diffusion.schedule, x_t, t, t_next, noise)
            continue
        prediction = denoiser(x_t, t)
        signal, sigma = diffusion.schedule.alpha_sigma(t_next)
        if sigma == 0:
            x_prev = torch.where(known, y, prediction.x_0)
        else:
            posterior = diffusion.posterior(t, t_next)
            unknown_part = posterior.mean(prediction.x_0, x_t) + math.sqrt(posterior.variance) * noise()
            x_prev = torch.where(known, signal * y + sigma * noise(), unknown_part)
        if callback:
            callback(Step(position, steps, t, t_next, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


@dataclass(frozen=True)
class Method:
    """A restoration method, its default number of steps, the operator that it needs, and its own options.

    run(denoiser, y (N, *measurement_shape), operator, sigma_y, timesteps, *, noise, callback, **options) returns x_0
    (N, C, H, W). sigma_y: deviation of y's noise, in y's units (images span 2, from -1 to 1). timesteps: strictly
    decreasing, ending at -1. noise: returns standard normal noise. callback: called after each denoising step;
    `Step.index` is the position in `timesteps`, so a jump back decreases it.

    noisy, noiseless: class of the operator with noise (None: not possible) and without; object means any function.
    options: name of each option and its default; a whole number as default means that the option counts something.
    gradual: approaches y a little in every step, so that a few do not suffice; the others set what y tells in each.
    """

    name: str
    run: Callable[..., Tensor]
    steps: int
    noisy: type | None
    noiseless: type
    options: Mapping[str, float]
    gradual: bool = False

    def default_steps(self, schedule: NoiseSchedule) -> int:
        """The method's own number of steps, or T if that is less."""
        return min(self.steps, schedule.timesteps)

    def check(self, operator: Callable[[Tensor], Tensor], sigma_y: float) -> None:
        """Raise UserError if the method cannot undo this degradation, naming the methods that can."""
        check_sigma(sigma_y)
        needed = self.noisy if sigma_y > 0 else self.noiseless
        if needed is None:
            raise UserError(f"{self.name} takes the known pixels as exact; for noisy ones use ddrm or ddnm")
        if isinstance(operator, needed):
            return
        if needed is Inpainting:
            raise UserError(f"{self.name} only inpaints; for this task use ddrm, ddnm or dps")
        if needed is SpectralOperator:
            others = "dps" if sigma_y > 0 else "ddnm or dps"
            raise UserError(f"{self.name} needs an operator with a known singular value decomposition; use {others}")
        raise UserError(f"{self.name} needs a linear operator; for any other forward function use dps")


TRAVEL: dict[str, float] = {"travel_length": 1, "travel_repeats": 1}
JUMPS: dict[str, float] = {"jump_length": 10, "jump_repeats": 10}
METHODS = {
    "ddrm": Method("ddrm", ddrm, 20, SpectralOperator, SpectralOperator, {"eta": 0.85, "eta_b": 1.0}),
    "ddnm": Method("ddnm", ddnm, 100, SpectralOperator, LinearOperator, {"eta": 0.85, **TRAVEL}),
    "repaint": Method("repaint", repaint, 250, None, Inpainting, JUMPS),
    "dps": Method("dps", dps, 1000, object, object, {"scale": 1.0}, gradual=True),
}


def find_method(name: str) -> Method:
    """Return the method called `name`; UserError names the nearest one."""
    if name in METHODS:
        return METHODS[name]
    raise UserError(f"no restoration method named {name!r}; {nearest(name, METHODS)}")


def check_sigma(sigma: float) -> None:
    """Raise UserError unless σ is a finite number of at least 0."""
    if not math.isfinite(sigma) or sigma < 0:
        raise UserError(f"the noise must be a number of at least 0 (in units of the [0, 1] image), not {sigma}")
