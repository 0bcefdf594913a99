"""Interpolation between two images in latent space, as in figures 8 and 9 of Ho et al. 2020."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.editing.batches import Editor
from ddpm.editing.sdedit import grid_from
from ddpm.errors import UserError
from ddpm.randomness import ImageNoise
from ddpm.samplers import find_sampler
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.step import Noise


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
        x_t = denoiser.process.q_sample(x_0, grid[0], epsilon)
        return chosen(denoiser, x_t, grid, noise=noise).clamp(-1, 1)

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
