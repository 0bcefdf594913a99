"""Edit images with a model: SDEdit (Meng et al. 2022) and latent interpolation (Ho et al. 2020, figures 8 and 9)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr, ssim_or_none
from ddpm.common.pixels import check_finite
from ddpm.common.randomness import ImageNoise
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.model import Model, SamplingOptions
from ddpm.samplers.algorithms import Noise
from ddpm.samplers.denoiser import Denoiser

Work = Callable[..., Tensor]  # (denoiser, noise, images (n, C, H, W), ...) -> (n, ...)
EDITING = SamplingOptions(sampler="ancestral", steps=100)  # the defaults of an edit


class Editor:
    """A model with the sampling options of an edit.

    Args:
        options: default: ancestral sampling, 100 steps. `steps` (at most T) is for a full run from pure noise; a run
            from strength or depth s takes the fraction s of them, evenly spaced; `spacing` is not used. `labels` is
            one class for all images or one per image; None means no class. Image i's noise depends only on (seed, i).
        changes: fields of `SamplingOptions` that replace those of `options`.
    """

    def __init__(self, model: Model, options: SamplingOptions | None = None, **changes: Any):
        self.model = model
        self.options = SamplingOptions.of(options or EDITING, **changes)
        _ = self.options.spec  # an unknown sampler is refused before any work

    def with_options(self, **changes: Any) -> "Editor":
        """Return an editor of the same model with some options changed."""
        return Editor(self.model, self.options, **changes)

    def run(self, work: Work, images: Tensor, *more: Tensor, same_noise: bool = False) -> Tensor:
        """Apply `work` to batches of images and return its results on the CPU.

        Args:
            images: (N, C, H, W) in [-1, 1], of the model's shape.
            more: further tensors with one row per image, passed to `work` with their images.
            same_noise: every image gets the noise of image 0.

        Raises UserError if the images do not have the model's shape, there are none, or an option is not possible.
        """
        model, options = self.model, self.options
        if tuple(images.shape[1:]) != model.image_shape:
            raise UserError(f"the images are {tuple(images.shape[1:])}, but this model knows {model.image_shape}")
        if not len(images):
            raise UserError("there are no images to edit")
        labels = model.labels_per_image(options.labels, len(images))
        size = model.default_batch_size if options.batch_size is None else options.batch_size
        if size < 1:
            raise UserError(f"the batch size must be at least 1, not {size}")
        results = []
        for start in range(0, len(images), size):
            indices = range(start, min(start + size, len(images)))
            batch_labels = None if labels is None else labels[start : start + size]
            denoiser = model.denoiser(batch_labels, options=options, batch_size=size)
            streams = [0] * len(indices) if same_noise else indices
            noise = ImageNoise.of_seed(options.seed, streams, model.image_shape, device=model.device)
            batch = [part[start : start + size].to(model.device) for part in (images, *more)]
            results.append(check_finite(work(denoiser, noise, *batch), model.why_not_finite).cpu())
        return torch.cat(results)

    def denoise(self, denoiser: Denoiser, x_t: Tensor, timesteps: Sequence[float], noise: Noise) -> Tensor:
        """Sample x_0 (N, C, H, W) in [-1, 1] from x_t at the first of the timesteps, with the editor's sampler."""
        options = self.options
        given: dict[str, Any] = {} if options.eta is None else {"eta": options.eta}  # else the sampler's default
        x_0 = options.spec(denoiser, x_t, timesteps, noise=noise, **given)
        return check_finite(x_0, self.model.why_not_finite).clamp(-1, 1)


STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LOSS_DEPTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def sdedit(editor: Editor, images: Tensor, strength: float, **changes: Any) -> Tensor:
    """Add noise to images and denoise them again (SDEdit, Meng et al. 2022).

    Args:
        images: (N, C, H, W) in [-1, 1].
        strength: fraction of the timesteps, from 0 (the image stays) to 1 (a new sample). 0.3 of T = 1000 adds the
            noise of 300 steps.
        changes: sampling options that replace the editor's, e.g. sampler and steps.

    Returns: (N, C, H, W) in [-1, 1].
    """
    editor = editor.with_options(**changes)

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor) -> Tensor:
        timesteps = timesteps_from(denoiser.schedule, strength, editor.options.steps)
        if len(timesteps) == 1:
            return x_0
        x_t = denoiser.diffusion.q_sample(x_0, timesteps[0], noise())
        return editor.denoise(denoiser, x_t, timesteps, noise)

    return editor.run(work, images)


def timesteps_from(schedule: NoiseSchedule, strength: float, steps: int | None) -> list[float]:
    """Evenly spaced timesteps from strength·T - 1 down to -1: the fraction `strength` of `steps` (default: T)."""
    if not 0 <= strength <= 1:
        raise UserError(f"the strength must be between 0 (keep the image) and 1 (a new sample), not {strength}")
    steps = schedule.timesteps if steps is None else min(steps, schedule.timesteps)
    if steps < 1:
        raise UserError(f"at least 1 step is needed, not {steps}")
    first = strength * schedule.timesteps - 1
    if first < 0:
        return [-1.0]
    taken = max(1, round(strength * steps))
    return [float(t) for t in np.linspace(first, -1, taken + 1)]


@dataclass(frozen=True)
class CurvePoint:
    """The edited images of one strength, how close they are to the originals, and how plausible.

    psnr, ssim: means over the images; ssim is nan for images smaller than 11×11. denoising_loss: see that function.
    images: (N, C, H, W) in [-1, 1].
    """

    strength: float
    psnr: float
    ssim: float
    denoising_loss: float
    images: Tensor


def fidelity_curve(
    editor: Editor,
    images: Tensor,
    strengths: Sequence[float] = STRENGTHS,
    **changes: Any,
) -> list[CurvePoint]:
    """Trade fidelity for realism: run `sdedit` at each strength, after the unchanged images (strength 0)."""
    editor, points = editor.with_options(**changes), []
    for strength in [0.0, *(s for s in strengths if s > 0)]:
        edited = sdedit(editor, images, strength)
        similarity = ssim_or_none(edited, images)
        points.append(
            CurvePoint(
                strength,
                float(psnr(edited, images).mean()),
                float("nan") if similarity is None else float(similarity.mean()),
                denoising_loss(editor, edited),
                edited,
            )
        )
    return points


def denoising_loss(editor: Editor, images: Tensor) -> float:
    """How plausible images are for the model: its loss ‖ε - ε̂‖² per pixel on them, mean over t from 0.1·T to 0.7·T.

    This is the training loss (Ho et al. 2020, eq. 14) with fixed noise. If edited images have a loss as low as real
    ones, the model cannot distinguish them from real ones; it does not notice what the model itself does not see.

    Args:
        images: (N, C, H, W) in [-1, 1].
    """
    fixed = editor.with_options(guidance=1.0, clip=None, seed=editor.options.seed + 1)

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor) -> Tensor:
        errors = []
        for depth in LOSS_DEPTHS:
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
    **changes: Any,
) -> Tensor:
    """Interpolate between two images in the space of x_t (Ho et al. 2020, figure 8).

    Both images are noised to t = depth·T, mixed to x̄_t = (1-λ) x_t + λ x'_t, and denoised with noise that is the same
    for every λ. The mean of two noises has less variance than t requires, at λ = ½ half of it, and the model would
    take that for a smooth image. So the mixed noise is scaled to unit variance; the images are mixed as in the paper.

    Args:
        first, second: (C, H, W) in [-1, 1].
        weights: values of λ, from 0 (the first image) to 1 (the second).
        depth: fraction of the timesteps; figure 8 takes 0.5. At depth 0 the images are only blended. At larger depths
            more details are new, also for λ = 0 and λ = 1 (figure 9).
        changes: sampling options that replace the editor's, e.g. sampler and steps.

    Returns: (len(weights), C, H, W) in [-1, 1].
    """
    if not 0 <= depth <= 1:
        raise UserError(f"the depth must be between 0 (the images, mixed) and 1 (pure noise), not {depth}")
    editor = editor.with_options(**changes)
    lambdas = torch.tensor(list(weights), dtype=torch.float32).reshape(-1, 1, 1, 1)
    images = torch.lerp(first[None], second[None], lambdas)
    ends = ImageNoise.of_seed(editor.options.seed, [1, 2], editor.model.image_shape)()
    shrunk = ((1 - lambdas) ** 2 + lambdas**2).sqrt()
    mixed = torch.lerp(ends[:1], ends[1:], lambdas) / shrunk

    def work(denoiser: Denoiser, noise: Noise, x_0: Tensor, epsilon: Tensor) -> Tensor:
        timesteps = timesteps_from(denoiser.schedule, depth, editor.options.steps)
        if len(timesteps) == 1:
            return x_0
        x_t = denoiser.diffusion.q_sample(x_0, timesteps[0], epsilon)
        return editor.denoise(denoiser, x_t, timesteps, noise)

    return editor.run(work, images, mixed, same_noise=True)


def coarse_to_fine(
    editor: Editor,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float],
    depths: Sequence[float],
    **changes: Any,
) -> Tensor:
    """Run `interpolate` at each depth: (len(depths), len(weights), C, H, W) (Ho et al. 2020, figure 9)."""
    return torch.stack([interpolate(editor, first, second, weights, depth=depth, **changes) for depth in depths])
