"""SDEdit (Meng et al. 2022): noise an image up to some t and denoise it again; how much of it is kept?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ddpm.editing.batches import Editor
from ddpm.errors import UserError
from ddpm.fidelity import psnr, ssim
from ddpm.process.schedule import NoiseSchedule
from ddpm.samplers import find_sampler
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Noise

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
        x_t = denoiser.process.q_sample(x_0, grid[0], noise())
        return chosen(denoiser, x_t, grid, noise=noise).clamp(-1, 1)

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
            predicted = denoiser(denoiser.process.q_sample(x_0, t, epsilon), t).epsilon
            errors.append((predicted - epsilon).square().flatten(1).mean(1))
        return torch.stack(errors).mean(0)

    with torch.no_grad():
        return float(fixed.run(work, images).mean())
