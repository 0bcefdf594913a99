"""Progressive sampling and coding as pictures, after Ho et al. 2020, sections 4.3 and 4.4.

`progressive_generation` is figure 6, `shared_latents` figure 7. `progressive_coding` has the lossy reconstructions
along the rate-distortion curve of figure 5, which `evaluate_likelihood` computes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError, require
from ddpm.common.files import atomic_path
from ddpm.common.pixels import make_grid
from ddpm.common.randomness import ImageNoise, derive_seed, image_generator
from ddpm.model import Labels, Model
from ddpm.samplers import SAMPLERS, Noise, Step, timestep_grid


@dataclass(frozen=True)
class Sheet:
    """Rows of images with titles of columns and rows ("" for none).

    `images`: float (rows, columns, C, H, W) in [-1, 1].
    """

    images: Tensor
    column_titles: list[str]
    row_titles: list[str]


def predictions_over_time(
    model: Model,
    indices: Sequence[int],
    *,
    moments: int = 10,
    sampler: str = "ancestral",
    steps: int | None = None,
    **options,
) -> Iterator[tuple[list[int], list[float], Tensor]]:
    """Predict x_0 at evenly spaced steps of sampling, one batch at a time.

    Args:
        moments: number of predictions per image; the last one is at the last step.
        steps: sampling steps, by default all T.
        options: fields of `SamplingOptions`.

    Yields: (indices, the timestep t of each prediction, float (n, moments, C, H, W) on the CPU).
    """
    steps = steps or model.diffusion.schedule.timesteps
    if not 1 <= moments <= steps:
        raise UserError(f"{moments} moments asked for; {steps} steps have 1 to {steps}")
    wanted = {round(place) for place in np.linspace(steps - 1, 0, moments)}
    kept: list[Tensor] = []
    times: list[float] = []

    def keep(step: Step) -> None:
        if step.index in wanted:
            kept.append(step.x_0.float().cpu())
            times.append(step.t)

    for batch, _ in model.sample_batches(indices, sampler=sampler, steps=steps, callback=keep, **options):
        yield batch, list(times), torch.stack(kept, dim=1)
        kept.clear()
        times.clear()


def progressive_generation(model: Model, num: int = 6, **options) -> Sheet:
    """Make figure 6: predicted x_0 from noise to sample, one row per image; options as for `predictions_over_time`."""
    found = list(predictions_over_time(model, range(num), **options))
    titles = [f"t = {t:g}" for t in found[0][1]]
    return Sheet(torch.cat([images for _, _, images in found]), titles, [""] * num)


@torch.no_grad()
def shared_latents(
    model: Model,
    *,
    depths: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    siblings: int = 8,
    labels: Labels = None,
    seed: int = 0,
    steps: int | None = None,
) -> Sheet:
    """Make figure 7: one ancestral run, and at each depth `siblings` samples of p(x_0|x_t) that share its x_t.

    One row per depth, x_t first. `depths` are fractions of the way from data to noise: 1 shares only x_T. `labels`: the
    class of all images; the first one if several are given.
    """
    if not depths or not all(0 < depth <= 1 for depth in depths):
        raise UserError("depths are fractions of the way to noise: numbers above 0, at most 1")
    grid = timestep_grid(model.diffusion.schedule, steps or model.diffusion.schedule.timesteps)
    starts = [min(round((1 - depth) * (len(grid) - 1)), len(grid) - 2) for depth in depths]
    classes = model.resolve_labels(labels)

    def run(x_t: Tensor, start: int, noise: Noise, callback=None) -> Tensor:
        of_class = None if classes is None else torch.full((len(x_t),), classes[0])
        sampler = SAMPLERS["ancestral"]
        return sampler(model.denoiser(of_class), x_t, grid[start:], noise=noise, callback=callback)

    states: dict[int, Tensor] = {}

    def keep(step: Step) -> None:
        if step.index in starts:
            states[step.index] = step.x_t

    trunk = ImageNoise([image_generator(seed, 0)], model.image_shape, device=model.device)
    run(trunk(), 0, trunk, keep)
    rows = []
    for start in starts:
        streams = [
            torch.Generator().manual_seed(derive_seed(seed, "sibling", start, child)) for child in range(siblings)
        ]
        noise = ImageNoise(streams, model.image_shape, device=model.device)
        children = run(states[start].expand(siblings, -1, -1, -1), start, noise)
        rows.append(torch.cat([states[start], children]).float().cpu())
    return Sheet(torch.stack(rows), ["x_t", *[""] * siblings], [f"t = {grid[start]:g}" for start in starts])


@torch.no_grad()
def progressive_coding(
    model: Model,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    moments: int = 10,
    seed: int = 0,
) -> Sheet:
    """Show what a receiver sees as the bits of images arrive: the predicted x_0 from x_t, then the image itself.

    Args:
        images: float (N, C, H, W) in [-1, 1], one row each.
        labels: int64 (N,), or None if classes are not used.
        moments: number of timesteps, spaced evenly from T-1 to 0. `evaluate_likelihood` computes their rates.
    """
    schedule, diffusion = model.diffusion.schedule, model.diffusion
    times = [round(t) for t in np.linspace(schedule.timesteps - 1, 0, moments)]
    streams = [torch.Generator().manual_seed(derive_seed(seed, "coding", index)) for index in range(len(images))]
    noise = ImageNoise(streams, model.image_shape, device=model.device)
    denoiser, x_0 = model.denoiser(labels), images.to(model.device, torch.float32)
    x_t, columns = diffusion.q_sample(x_0, times[0], noise()), []
    for i, t in enumerate(times):
        if i > 0:  # a sample of the posterior is sent next, so the x_t form one chain
            posterior = diffusion.posterior(times[i - 1], t)
            x_t = posterior.mean(x_0, x_t) + posterior.variance**0.5 * noise()
        columns.append(denoiser(x_t, t).x_0.cpu())
    titles = [*(f"t = {t}" for t in times), "original"]
    return Sheet(torch.stack([*columns, x_0.cpu()], dim=1), titles, [""] * len(images))


def save_sheet(sheet: Sheet, path: str | Path) -> None:
    """Save the sheet with its titles, in the format of the suffix (png, pdf, svg)."""
    rows, columns, channels, height, width = sheet.images.shape
    grid = make_grid(sheet.images.flatten(0, 1), columns=columns).permute(1, 2, 0).numpy()
    inches = 1.0  # an image's width
    size = (columns * inches, (rows * height / width + 0.3) * inches)
    figure = require("matplotlib.figure", "eval").Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid if channels > 1 else grid[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelsize=8, labelbottom=False, labeltop=True)
    axes.set_xticks([(i + 0.5) * (width + 2) for i in range(columns)], sheet.column_titles)
    axes.set_yticks([(i + 0.5) * (height + 2) for i in range(rows)], sheet.row_titles)
    with atomic_path(Path(path)) as beside:
        figure.savefig(beside, dpi=150)
