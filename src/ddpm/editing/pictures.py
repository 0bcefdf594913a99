"""Read pictures for an edit, and plot edited images with their fidelity."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.pixels import make_grid, to_float, to_pillow
from ddpm.data.folder import list_images, picture_names
from ddpm.data.images import ENDINGS, read_image, resize_to, to_tensor
from ddpm.editing.editor import CurvePoint
from ddpm.editing.inversion import RoundTrip
from ddpm.model import Model
from ddpm.plotting.plots import COLOURS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS_DRAWN = 6


def read_fitted(path: Path, model: Model) -> Tensor:
    """Read a picture as (1, C, H, W) in [-1, 1], resized to the model's shape as in training."""
    channels, height, width = model.image_shape
    how, background = model.preprocessing
    picture = to_pillow(read_image(path, channels, background, smallest=1))
    return to_float(to_tensor(resize_to(picture, (height, width), how, background)))[None]


def read_folder(source: Path, model: Model) -> tuple[list[str], Tensor, list[str]]:
    """Read the pictures directly in a folder.

    Returns: their names without the ending (unless two differ only in it), (N, C, H, W) in [-1, 1], and a message for
        each file or sub-folder that was left out. Raises UserError if no picture can be used.
    """
    paths, skipped = list_images(source, recursive=False)
    failures = [f"{source / name}: {reason}" for name, reason in skipped]
    if not paths:
        reason = f"; left out: {failures[0]}" if failures else ""
        raise UserError(f"no pictures in {source}: looked for {', '.join(ENDINGS)}{reason}")
    pictures: dict[Path, Tensor] = {}
    for path in paths:
        try:
            pictures[path] = read_fitted(path, model)
        except UserError as error:
            failures.append(str(error))
    if not pictures:
        raise UserError(f"no picture in {source} can be used; the first: {failures[0]}")
    names = picture_names([path.relative_to(source) for path in pictures])
    return names, torch.cat([*pictures.values()]), failures


def draw_curve(points: Sequence[CurvePoint]) -> "Figure":
    """Plot the edited images of each strength, and below them PSNR and denoising loss; strength 0 is the original."""
    edited = points[1:]
    strengths = [point.strength for point in edited]
    with _gallery([point.images for point in points], ["original", *(f"{s:g}" for s in strengths)]) as (plot, ax):
        ax.plot(strengths, [point.psnr for point in edited], color=COLOURS[0], marker="o")
        ax.set(xlabel="strength: the fraction of timesteps by which the image was noised")
        ax.set_ylabel("PSNR to the original, dB", color=COLOURS[0])
        other = ax.twinx()
        other.plot(strengths, [point.denoising_loss for point in edited], color=COLOURS[1], marker="s", linestyle="--")
        other.axhline(points[0].denoising_loss, color=COLOURS[1], linewidth=0.8, linestyle=":")
        other.set_ylabel(r"denoising loss $\Vert\epsilon-\hat\epsilon\Vert^2$ (dotted: originals)", color=COLOURS[1])
        other.grid(False)
        return plot


def draw_reconstructions(originals: Tensor, trips: Sequence[RoundTrip]) -> "Figure":
    """Plot the round trips of each depth, and below them their error."""
    depths = [trip.depth for trip in trips]
    titles = ["original", *(f"{depth:g}" for depth in depths)]
    with _gallery([originals, *(trip.images for trip in trips)], titles) as (plot, ax):
        ax.plot(depths, [trip.error * 127.5 for trip in trips], color=COLOURS[0], marker="o", label="root mean square")
        ax.plot(
            depths, [trip.largest * 127.5 for trip in trips], color=COLOURS[1], marker="s", ls="--", label="largest"
        )
        ax.set(xlabel="depth: the fraction of timesteps inverted", ylabel="round-trip error, of 255", yscale="log")
        ax.legend()
        return plot


@contextmanager
def _gallery(columns: Sequence[Tensor], titles: Sequence[str]) -> Iterator[tuple["Figure", "Axes"]]:
    """Yield a figure with a table of images (one column per tensor (N, C, H, W)) and the empty axes below it."""
    images = torch.stack([column[:ROWS_DRAWN] for column in columns], dim=1)
    across, channels, width = images.shape[1], images.shape[2], images.shape[4]
    grid = make_grid(images.flatten(0, 1), columns=across).permute(1, 2, 0).numpy()
    picture_inches = 6.3 * grid.shape[0] / grid.shape[1]
    with figure(2, 1, picture_inches + 2.8) as (plot, axes):
        axes[0, 0].get_gridspec().set_height_ratios([picture_inches, 2.4])
        ax = axes[0, 0]
        ax.imshow(grid[..., 0] if channels < 3 else grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
        ax.grid(False)
        ax.set_frame_on(False)
        ax.set_yticks([])
        ax.tick_params(length=0, labelbottom=False, labeltop=True)
        ax.set_xticks((np.arange(across) + 0.5) * (width + 2) + 1, titles)
        yield plot, axes[1, 0]
