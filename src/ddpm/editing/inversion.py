"""Inversion: find the x_t from which deterministic sampling returns a given image, and translate between classes.

With √ᾱ = cos φ and √(1-ᾱ) = sin φ the probability-flow ODE is dx/dφ = v, where v = √ᾱ ε̂ - √(1-ᾱ) x̂_0 (Salimans & Ho
2022, appendix D). v is bounded from the data (φ = 0) to pure noise (φ = π/2), so steps are evenly spaced in φ. If
x̂_0 and ε̂ were constant over a step of δ, x would turn by δ on a circle:
- order 1, DDIM (Song et al. 2021): v from the step's start, x' = cos δ x + sin δ v.
- order 2, midpoint: v from the step's middle, x' = x + 2 sin(δ/2) v. The middle is x_m = (x + x')/(2 cos(δ/2)), the
  same in both directions. So a step and its reverse cancel, up to the error of x_m.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.editing.editor import Editor
from ddpm.model import Labels
from ddpm.samplers.algorithms import Noise
from ddpm.samplers.denoiser import Denoiser, Prediction

Order = Literal[1, 2]
DEPTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@torch.no_grad()
def flow(denoiser: Denoiser, x: Tensor, angles: Sequence[float], order: Order = 2) -> Tensor:
    """Solve the ODE for x (N, C, H, W) at the given φ, increasing (towards noise) or decreasing (towards data).

    One network evaluation per step for order 1, two for order 2.
    """
    seen: Prediction | None = None  # at the middle of the last step: the first guess for this step's middle
    for start, end in pairwise(angles):
        delta, middle = end - start, (start + end) / 2
        if order == 1:
            x = math.cos(delta) * x + math.sin(delta) * velocity(predict(denoiser, x, start), start)
            continue
        evaluations = 1 if seen is None else 2
        seen = predict(denoiser, x, start) if seen is None else seen
        for _ in range(evaluations):
            x_m = x / math.cos(delta / 2) + math.tan(delta / 2) * velocity(seen, middle)
            seen = predict(denoiser, x_m, middle)
        x = x + 2 * math.sin(delta / 2) * velocity(seen, middle)
    return x


def predict(denoiser: Denoiser, x: Tensor, angle: float) -> Prediction:
    """Predict x̂_0 and ε̂ at φ. Below t = 0 no network was trained, so a φ there is evaluated at t = 0."""
    return denoiser(x, max(0.0, timestep_of(denoiser.schedule, angle)))


def velocity(prediction: Prediction, angle: float) -> Tensor:
    """v = cos φ ε̂ - sin φ x̂_0."""
    return math.cos(angle) * prediction.epsilon - math.sin(angle) * prediction.x_0


def timestep_of(schedule: NoiseSchedule, angle: float) -> float:
    """The fractional t with √(1-ᾱ_t) = sin φ."""
    return -1.0 if angle <= 0 else schedule.t_from_log_snr(-2 * math.log(math.tan(angle)))


def angles_to(schedule: NoiseSchedule, depth: float, steps: int) -> list[float]:
    """steps + 1 evenly spaced φ from the data to t = depth·T - 1."""
    if not 0 < depth <= 1:
        raise UserError(f"the depth must be above 0 (the data) and at most 1 (pure noise), not {depth}")
    if steps < 1:
        raise UserError(f"at least 1 step is needed, not {steps}")
    signal, sigma = schedule.alpha_sigma(max(0.0, depth * schedule.timesteps - 1))
    return [float(angle) for angle in np.linspace(0, math.atan2(sigma, signal), steps + 1)]


def steps_within(evaluations: int, order: Order) -> int:
    """The number of steps that so many network evaluations allow."""
    if evaluations < order:
        raise UserError(f"an inversion of order {order} needs at least {order} network evaluations, not {evaluations}")
    return evaluations // order


def invert(editor: Editor, images: Tensor, *, depth: float = 1.0, evaluations: int = 100, order: Order = 2) -> Tensor:
    """Return the latents x_t at t = depth·T - 1, (N, C, H, W), of images (N, C, H, W) in [-1, 1].

    Guidance and clipping are off, because they have no inverse; the network runs in float32.

    Raises UserError unless 0 < depth <= 1 and `evaluations` allows at least one step.
    """

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor) -> Tensor:
        return flow(denoiser, x_0, angles_to(denoiser.schedule, depth, steps_within(evaluations, order)), order)

    return exact(editor).run(work, images)


def generate(
    editor: Editor, latents: Tensor, *, depth: float = 1.0, evaluations: int = 100, order: Order = 2
) -> Tensor:
    """Return the images (N, C, H, W) of the latents of `invert`, with the editor's guidance and clipping."""

    def work(denoiser: Denoiser, noise: Noise, x_t: Tensor) -> Tensor:
        increasing = angles_to(denoiser.schedule, depth, steps_within(evaluations, order))
        return flow(denoiser, x_t, increasing[::-1], order)

    return editor.run(work, latents)


def exact(editor: Editor) -> Editor:
    """Return the editor without guidance and clipping, in float32."""
    return editor.with_options(guidance=1.0, clip=None, precision="fp32")


@dataclass(frozen=True)
class RoundTrip:
    """Images (N, C, H, W) after inversion to `depth` and back, and their errors: root mean square and largest."""

    depth: float
    images: Tensor
    error: float
    largest: float
    psnr: float


def round_trip(
    editor: Editor, images: Tensor, *, depth: float = 1.0, evaluations: int = 200, order: Order = 2
) -> RoundTrip:
    """Invert images and generate them again, half of the evaluations each way, without guidance or clipping."""
    if evaluations < 2 * order:
        least = f"at least {2 * order} network evaluations, not {evaluations}"
        raise UserError(f"a round trip of order {order} needs {least}")
    latents = invert(editor, images, depth=depth, evaluations=evaluations // 2, order=order)
    back = generate(exact(editor), latents, depth=depth, evaluations=evaluations // 2, order=order)
    error = back - images
    quality = float(psnr(back, images).mean())
    return RoundTrip(depth, back, float(error.square().mean().sqrt()), float(error.abs().max()), quality)


def reconstructions(
    editor: Editor, images: Tensor, depths: Sequence[float] = DEPTHS, *, evaluations: int = 200, order: Order = 2
) -> list[RoundTrip]:
    """Run `round_trip` at each depth."""
    return [round_trip(editor, images, depth=depth, evaluations=evaluations, order=order) for depth in depths]


def translate(
    editor: Editor,
    images: Tensor,
    source: Labels,
    target: Labels,
    *,
    depth: float = 1.0,
    evaluations: int = 100,
    order: Order = 2,
) -> Tensor:
    """Translate images (N, C, H, W) from class `source` to class `target`.

    They are inverted as `source` (None: no class), and generated from their latents as `target`. The latent keeps the
    features that do not depend on the class, such as slant, stroke and position. A smaller depth keeps more. Guidance
    is used only for generation.

    Raises UserError if the model was trained without classes.
    """
    if editor.model.num_classes is None:
        raise UserError("this model was trained without classes: there is nothing to translate between")
    latents = invert(editor.with_options(labels=source), images, depth=depth, evaluations=evaluations, order=order)
    back = generate(editor.with_options(labels=target), latents, depth=depth, evaluations=evaluations, order=order)
    return back.clamp(-1, 1)
