"""Edit images with a model: SDEdit (Meng et al. 2022) and latent interpolation (Ho et al. 2020, figures 8 and 9)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr, ssim
from ddpm.common.hardware import Precision
from ddpm.common.pixels import check_finite
from ddpm.common.randomness import ImageNoise
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.model import Labels, Model
from ddpm.samplers import find_sampler
from ddpm.samplers.algorithms import Noise
from ddpm.samplers.denoiser import Clip, Denoiser

Work = Callable[..., Tensor]  # (denoiser, noise, images (n, C, H, W), ...) -> (n, ...)


@dataclass(frozen=True)
class Editor:
    """A model with the choices that hold for a whole edit.

    labels: a class for all images, or one an image; None leaves a class-conditional model without a class.
    guidance, clip, precision: see `Model.denoiser`. seed: image i's noise is (seed, i)'s.
    """

    model: Model
    labels: Labels = None
    guidance: float = 1.0
    clip: Clip = "static"
    seed: int = 0
    batch_size: int | None = None
    precision: Precision = "auto"

    def run(self, work: Work, images: Tensor, *more: Tensor, same_noise: bool = False) -> Tensor:
        """Apply `work` to images (N, C, H, W) in [-1, 1], and to what goes with them; answers come back on the CPU.

        same_noise: every image gets the stream of image 0.
        """
        model = self.model
        if tuple(images.shape[1:]) != model.image_shape:
            raise UserError(f"the images are {tuple(images.shape[1:])}, but this model knows {model.image_shape}")
        if not len(images):
            raise UserError("there are no images to edit")
        classes = self._classes(len(images))
        size = model.default_batch_size if self.batch_size is None else self.batch_size
        if size < 1:
            raise UserError(f"the batch size must be at least 1, not {size}")
        answers = []
        for start in range(0, len(images), size):
            indices = range(start, min(start + size, len(images)))
            denoiser = model.denoiser(
                None if classes is None else classes[start : start + size],
                guidance=self.guidance,
                clip=self.clip,
                batch_size=size,
                precision=self.precision,
            )
            streams = [0] * len(indices) if same_noise else indices
            noise = ImageNoise.of_seed(self.seed, streams, model.image_shape, device=model.device)
            batch = [part[start : start + size].to(model.device) for part in (images, *more)]
            answers.append(work(denoiser, noise, *batch).cpu())
        return torch.cat(answers)

    def _classes(self, count: int) -> Tensor | None:
        if self.labels is None:
            return None
        classes = self.model.resolve_labels(self.labels) or []
        if len(classes) not in (1, count):
            raise UserError(f"{len(classes)} labels for {count} images: give one for all, or one an image")
        return torch.tensor(classes * (count if len(classes) == 1 else 1))


STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SURPRISE_DEPTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def sdedit(editor: Editor, images: Tensor, strength: float, *, sampler: str = "ancestral", steps: int = 100) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] noised by the first `strength` of the timesteps and denoised again.

    strength: 0 (nothing happens) to 1 (a fresh sample); 0.3 of T = 1000 is "corrupt by 300 steps".
    steps: of a whole run; a run from strength s takes s of them.
    """
    chosen = find_sampler(sampler)

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor) -> Tensor:
        grid = grid_from(denoiser.schedule, strength, steps)
        if len(grid) == 1:
            return x_0
        x_t = denoiser.diffusion.q_sample(x_0, grid[0], noise())
        return check_finite(chosen(denoiser, x_t, grid, noise=noise)).clamp(-1, 1)

    return editor.run(work, images)


def grid_from(schedule: NoiseSchedule, strength: float, steps: int) -> list[float]:
    """Falling timesteps from strength·T - 1 to -1, evenly spaced, `strength` of `steps` (at most T) of them."""
    if not 0 <= strength <= 1:
        raise UserError(f"the strength must lie between 0 (keep the image) and 1 (a fresh sample), not at {strength}")
    if steps < 1:
        raise UserError(f"at least 1 step is needed, not {steps}")
    first = strength * schedule.timesteps - 1
    if first < 0:
        return [-1.0]
    taken = max(1, round(strength * min(steps, schedule.timesteps)))
    return [float(t) for t in np.linspace(first, -1, taken + 1)]


@dataclass(frozen=True)
class CurvePoint:
    """What a strength keeps and how plausible the outcome is; `images` are the outcomes.

    psnr, ssim: to the originals, means (ssim nan below 11×11). surprise: see `surprise`.
    """

    strength: float
    psnr: float
    ssim: float
    surprise: float
    images: Tensor


def fidelity_curve(
    editor: Editor,
    images: Tensor,
    strengths: Sequence[float] = STRENGTHS,
    *,
    sampler: str = "ancestral",
    steps: int = 100,
) -> list[CurvePoint]:
    """The trade between fidelity and realism: `sdedit` at every strength, the untouched images (strength 0) first."""
    points = []
    for strength in [0.0, *(s for s in strengths if s > 0)]:
        outcome = sdedit(editor, images, strength, sampler=sampler, steps=steps)
        large = min(images.shape[-2:]) >= 11
        similarity = float(ssim(outcome, images).mean()) if large else float("nan")
        told = surprise(editor, outcome)
        points.append(CurvePoint(strength, float(psnr(outcome, images).mean()), similarity, told, outcome))
    return points


def surprise(editor: Editor, images: Tensor) -> float:
    """How badly the model predicts noise put on these images: mean ‖ε - ε̂‖² a pixel, over t from 0.1·T to 0.7·T.

    It is the loss that the model was trained to make small on real images (eq. 14), with the same noise for all: what
    surprises the model less than real images do is, to the model, as real as they are. It sees no more than the model.
    """
    fixed = replace(editor, guidance=1.0, clip=None, seed=editor.seed + 1)

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor) -> Tensor:
        errors = []
        for depth in SURPRISE_DEPTHS:
            t, epsilon = max(0, round(depth * denoiser.schedule.timesteps) - 1), noise()
            predicted = denoiser(denoiser.diffusion.q_sample(x_0, t, epsilon), t).epsilon
            errors.append((predicted - epsilon).square().flatten(1).mean(1))
        return torch.stack(errors).mean(0)

    with torch.no_grad():
        return float(fixed.run(work, images).mean())


def interpolate(
    editor: Editor,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float],
    *,
    depth: float = 0.5,
    sampler: str = "ancestral",
    steps: int = 100,
) -> Tensor:
    """Images between `first` and `second` (C, H, W): (len(weights), C, H, W), λ = 0 on the first one's side.

    Both are noised to t = depth·T (figure 8: 500 of 1,000 steps), x̄_t = (1-λ) x_t + λ x'_t, and x̄_t is denoised with
    noise that is the same for every λ. Averaging two noises would leave less noise than belongs to t, at λ = ½ half
    its variance, and the model would take the rest for an image's smoothness; so their average is scaled back.
    Neither λ = 0 nor λ = 1 gives the image back: at depth > 0 details are new, the more the deeper (figure 9).
    """
    if not 0 <= depth <= 1:
        raise UserError(f"the depth must lie between 0 (the images, mixed) and 1 (pure noise), not at {depth}")
    chosen = find_sampler(sampler)
    lambdas = torch.tensor(list(weights), dtype=torch.float32).reshape(-1, 1, 1, 1)
    images = torch.lerp(first[None], second[None], lambdas)
    ends = ImageNoise.of_seed(editor.seed, [1, 2], editor.model.image_shape)()
    shrunk = ((1 - lambdas) ** 2 + lambdas**2).sqrt()
    mixed = torch.lerp(ends[:1], ends[1:], lambdas) / shrunk

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor, epsilon: Tensor) -> Tensor:
        grid = grid_from(denoiser.schedule, depth, steps)
        if len(grid) == 1:
            return x_0
        x_t = denoiser.diffusion.q_sample(x_0, grid[0], epsilon)
        return check_finite(chosen(denoiser, x_t, grid, noise=noise)).clamp(-1, 1)

    return editor.run(work, images, mixed, same_noise=True)


def coarse_to_fine(
    editor: Editor,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float],
    depths: Sequence[float],
    **options,
) -> Tensor:
    """`interpolate` at every depth: (len(depths), len(weights), C, H, W), figure 9."""
    return torch.stack([interpolate(editor, first, second, weights, depth=depth, **options) for depth in depths])
