"""Restoration methods and the degradations that each can undo.

DDRM (Kawar et al. 2022), DDNM and DDNM+ (Wang et al. 2023), DPS (Chung et al. 2023), RePaint (Lugmayr et al. 2022) and
the time-travel schedule that RePaint and DDNM share.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.restoration.operator import LinearOperator, SpectralOperator
from ddpm.restoration.operators import Inpainting
from ddpm.samplers.algorithms import Callback, Noise, Step
from ddpm.samplers.denoiser import Denoiser, Prediction


def jump_path(steps: int, length: int, repeats: int) -> list[int]:
    """The positions on a grid of `steps` steps that are visited, from 0 (noise) to `steps` (data).

    After every `length` steps the path goes back up `length` positions, `repeats` - 1 times, before it goes on
    (Lugmayr et al. 2022, algorithm 1 and appendix B). It never jumps up from the data itself.
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
    """x_{t_up} ~ q(x_{t_up} | x_t) for t_up > t."""
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
    """Draw x_0 (N, C, H, W) given y = H x + σ_y n; one network evaluation a step, 20 steps are enough.

    Args:
        y: (N, *measurement_shape).
        sigma_y: the noise of y, in y's units (images span 2).
        timesteps: strictly falling, the last -1.
        noise: standard normal (N, C, H, W), once at the start and once a step but the last.
        eta, eta_b: the paper's η and η_b (eq. 8); 0.85 and 1 are its choice.
    """
    check_share("eta", eta)
    check_share("eta_b", eta_b)
    schedule, steps = denoiser.schedule, len(timesteps) - 1
    evidence = SpectralMeasurement(operator, y, sigma_y)
    x_t = evidence.start(*schedule.alpha_sigma(timesteps[0]), noise())
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        fresh = noise() if t_prev >= 0 else None
        x_prev = evidence.step(prediction, *schedule.alpha_sigma(t_prev), fresh, eta, eta_b)
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


def check_share(name: str, value: float) -> None:
    """Refuse an η that is no share of a step's noise."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie between 0 and 1, not at {value}")


class SpectralMeasurement:
    """What y says of x in H's spectral coordinates, where every direction is a scalar problem.

    ȳ = Σ⁺Uᵀy is x̄ with noise of deviation σ_y/s. While x_t is noisier than that, ȳ tells more than x̂_0 and replaces
    it; afterwards x̂_0 is pulled towards ȳ; what H does not see is sampled as by DDIM. The paper's σ_t is √((1-ᾱ)/ᾱ)
    here and its x is x_t/√ᾱ; its equations are multiplied through by √ᾱ, so that a schedule may end at ᾱ = 0.
    """

    def __init__(self, operator: SpectralOperator, y: Tensor, sigma_y: float):
        self.operator, self.seen = operator, operator.seen
        self.y_bar = operator.inverse_singulars * operator.Ut(y)
        self.sigma_bar = sigma_y * operator.inverse_singulars

    def start(self, signal: float, sigma: float, noise: Tensor) -> Tensor:
        """x_T: ȳ with as much noise as it lacks, pure noise where ȳ has more or is not known (eq. 7)."""
        told = self.seen & (signal * self.sigma_bar <= sigma)
        lacking = (sigma**2 - (signal * self.sigma_bar) ** 2).clamp(min=0).sqrt()
        bar = self.operator.Vt(noise)
        return sigma * noise + self.operator.V(torch.where(told, signal * self.y_bar + (lacking - sigma) * bar, 0.0))

    def step(
        self, prediction: Prediction, signal: float, sigma: float, noise: Tensor | None, eta: float, eta_b: float
    ) -> Tensor:
        """x_prev = √ᾱ x + √(1-ᾱ) …, (signal, sigma) = (√ᾱ, √(1-ᾱ)) of x_prev; `noise` None at the data (eq. 8)."""
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
        evidence = SpectralMeasurement(operator, y, sigma_y)
    x_t = noise()
    for position, following in pairwise(jump_path(steps, travel_length, travel_repeats)):
        t, t_next = timesteps[position], timesteps[following]
        if following < position:
            x_t = renoise(schedule, x_t, t, t_next, noise)
            continue
        prediction = denoiser(x_t, t)
        signal, sigma = schedule.alpha_sigma(t_next)
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
    """Draw x_0 (N, C, H, W) given y ≈ A(x): ancestral steps, each pulled down the gradient of ‖y - A(x̂_0(x_t))‖.

    The paper's algorithm 1, with its step size ζ/‖y - A(x̂_0)‖ on the squared norm. σ_y enters only through that
    normalisation, so `scale` (ζ) is a matter of the task; the paper takes 0.3 to 1 for 1,000 steps.

    Args:
        y: (N, ...), what `operator` gives for an image.
        operator: differentiable; e.g. a `LinearOperator`, `saturation`, or any function of yours.
        timesteps: strictly falling, the last -1. The guidance is small a step: use hundreds.
    """
    steps, x_t = len(timesteps) - 1, noise()
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            prediction = denoiser(x_t, t)
            residual = (y - operator(prediction.x_0)).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(residual.sum(), x_t)  # each image's own: images do not mix
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
    """An over-exposed sensor: y = gain·x on the [0, 1] scale, cut off at the ends; the example of a non-linear task."""

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
    """A restoration method, the steps it takes unless told, and the operator it needs.

    noisy, noiseless: the class of operator, with noise (None: never) and without; object is any function.
    """

    name: str
    run: Callable[..., Tensor]
    steps: int
    noisy: type | None
    noiseless: type

    @property
    def options(self) -> dict[str, float]:
        """What the method may be told besides, with the values it takes otherwise."""
        parameters = inspect.signature(self.run).parameters
        return {name: p.default for name, p in parameters.items() if isinstance(p.default, int | float)}

    def check(self, operator: Callable[[Tensor], Tensor], sigma_y: float) -> None:
        """Refuse what the method cannot do, naming what can."""
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


METHODS = {
    "ddrm": Method("ddrm", ddrm, 20, SpectralOperator, SpectralOperator),
    "ddnm": Method("ddnm", ddnm, 100, SpectralOperator, LinearOperator),
    "repaint": Method("repaint", repaint, 250, None, Inpainting),
    "dps": Method("dps", dps, 1000, object, object),
}


def find_method(name: str) -> Method:
    """The method called `name`; an error names the nearest one."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(METHODS)}"
    raise UserError(f"no restoration method named {name!r}{hint}")


def check_sigma(sigma: float) -> None:
    """Refuse a noise level that is no noise level."""
    if not math.isfinite(sigma) or sigma < 0:
        raise UserError(f"the noise must be a number of at least 0 (in units of the [0, 1] image), not {sigma}")
