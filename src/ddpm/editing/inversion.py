"""Inversion: the x_t that the deterministic process turns back into a given image, and what can be done with it.

With √ᾱ = cos φ and √(1-ᾱ) = sin φ the probability-flow ODE is dx/dφ = v, where v = √ᾱ ε̂ - √(1-ᾱ) x̂_0 (Salimans & Ho
2022, appendix D). v is bounded from the data (φ = 0) to pure noise (φ = π/2), so φ is where to take even steps. Were
x̂_0 and ε̂ constant over a step of δ, x would turn by δ on a circle:
- order 1, DDIM (Song et al. 2021): v from the step's start, x' = cos δ x + sin δ v.
- order 2, midpoint: v from the step's middle, x' = x + 2 sin(δ/2) v. The middle is x_m = (x + x')/(2 cos(δ/2)), the
  same whichever way the step is walked, so that going there and back cancels but for how well x_m was found.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Carry x (N, C, H, W) along the ODE through the given φ, rising (towards noise) or falling (towards data).

    One network evaluation a step for order 1, two for order 2.
    """
    seen: Prediction | None = None  # x̂_0 and ε̂ in the middle of the last step: the first guess for this one's
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
    """x̂_0 and ε̂ at φ; a φ between the data and t = 0, where no network was trained, is taken to t = 0."""
    return denoiser(x, max(0.0, timestep_of(denoiser.schedule, angle)))


def velocity(prediction: Prediction, angle: float) -> Tensor:
    """v = cos φ ε̂ - sin φ x̂_0."""
    return math.cos(angle) * prediction.epsilon - math.sin(angle) * prediction.x_0


def timestep_of(schedule: NoiseSchedule, angle: float) -> float:
    """The (fractional) t whose √(1-ᾱ) is sin φ."""
    return -1.0 if angle <= 0 else schedule.t_from_log_snr(-2 * math.log(math.tan(angle)))


def angles_to(schedule: NoiseSchedule, depth: float, steps: int) -> list[float]:
    """steps + 1 even φ from the data to t = depth·T - 1."""
    if not 0 < depth <= 1:
        raise UserError(f"the depth must lie above 0 (the data) and not above 1 (pure noise), not at {depth}")
    if steps < 1:
        raise UserError(f"at least 1 step is needed, not {steps}")
    signal, sigma = schedule.alpha_sigma(max(0.0, depth * schedule.timesteps - 1))
    return [float(angle) for angle in np.linspace(0, math.atan2(sigma, signal), steps + 1)]


def steps_within(evaluations: int, order: Order) -> int:
    """How many steps a number of network evaluations allows."""
    if evaluations < order:
        raise UserError(f"an inversion of order {order} needs at least {order} network evaluations, not {evaluations}")
    return evaluations // order


def invert(editor: Editor, images: Tensor, *, depth: float = 1.0, evaluations: int = 100, order: Order = 2) -> Tensor:
    """The latents x_t at t = depth·T - 1 of images (N, C, H, W).

    Guidance and clipping are off: they have no inverse.
    """

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor) -> Tensor:
        return flow(denoiser, x_0, angles_to(denoiser.schedule, depth, steps_within(evaluations, order)), order)

    return exact(editor).run(work, images)


def generate(
    editor: Editor, latents: Tensor, *, depth: float = 1.0, evaluations: int = 100, order: Order = 2
) -> Tensor:
    """The images that `invert`'s latents stand for, with the editor's own guidance and clipping."""

    def work(denoiser: Denoiser, noise: Noise, x_t: Tensor) -> Tensor:
        rising = angles_to(denoiser.schedule, depth, steps_within(evaluations, order))
        return flow(denoiser, x_t, rising[::-1], order)

    return editor.run(work, latents)


def exact(editor: Editor) -> Editor:
    """The editor without guidance and clipping, in float32."""
    return replace(editor, guidance=1.0, clip=None, precision="fp32")


@dataclass(frozen=True)
class RoundTrip:
    """There and back to `depth`: `images` (N, C, H, W); root mean square and largest error on the [-1, 1] scale."""

    depth: float
    images: Tensor
    error: float
    largest: float
    psnr: float


def round_trip(
    editor: Editor, images: Tensor, *, depth: float = 1.0, evaluations: int = 200, order: Order = 2
) -> RoundTrip:
    """Invert and generate again, half of the network evaluations each way, guidance and clipping off."""
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
    """`round_trip` from every depth."""
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
    """Images of class `source` as class `target`: inverted as the one, generated from that latent as the other.

    What the class does not decide (slant, stroke, place) lives in the latent and is kept. The editor's guidance acts
    on the way back; a smaller depth keeps more of the image.
    """
    if editor.model.num_classes is None:
        raise UserError("this model was trained without classes: there is nothing to translate between")
    latents = invert(replace(editor, labels=source), images, depth=depth, evaluations=evaluations, order=order)
    back = generate(replace(editor, labels=target), latents, depth=depth, evaluations=evaluations, order=order)
    return back.clamp(-1, 1)
