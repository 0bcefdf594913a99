"""Pictures in and out of an edit: fitted to the model on the way in, drawn beside their figures on the way out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.pixels import make_grid, to_float, to_pillow
from ddpm.data.images import ENDINGS, read_image, resize_to, to_tensor
from ddpm.data.sources import picture_names
from ddpm.editing.editor import CurvePoint
from ddpm.editing.inversion import RoundTrip
from ddpm.model import Model
from ddpm.plotting.plots import COLOURS, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS_DRAWN = 6


def read_fitted(path: Path, model: Model) -> Tensor:
    """A picture as (1, C, H, W) in [-1, 1], brought to the model's shape as in training."""
    channels, height, width = model.image_shape
    how, background = model.preprocessing
    picture = to_pillow(read_image(path, channels, background, smallest=1))
    return to_float(to_tensor(resize_to(picture, (height, width), how, background)))[None]


def read_folder(source: Path, model: Model) -> tuple[list[str], Tensor, list[str]]:
    """The pictures directly in a folder: their names, (N, C, H, W) in [-1, 1], and what is wrong with the others.

    A name is without its ending, which stays where another picture has the same name.
    """
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise UserError(f"no pictures in {source}: looked for {', '.join(ENDINGS)}")
    pictures: dict[Path, Tensor] = {}
    failures = []
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
    """The outcomes at every strength above, PSNR and surprise over strength below; strength 0 is the original."""
    edited = points[1:]
    strengths = [point.strength for point in edited]
    with _gallery([point.images for point in points], ["original", *(f"{s:g}" for s in strengths)]) as (drawn, ax):
        ax.plot(strengths, [point.psnr for point in edited], color=COLOURS[0], marker="o")
        ax.set(xlabel="strength: the share of timesteps by which the image was noised")
        ax.set_ylabel("PSNR to the original, dB", color=COLOURS[0])
        other = ax.twinx()
        other.plot(strengths, [point.surprise for point in edited], color=COLOURS[1], marker="s", linestyle="--")
        other.axhline(points[0].surprise, color=COLOURS[1], linewidth=0.8, linestyle=":")
        other.set_ylabel(r"surprise $\Vert\epsilon-\hat\epsilon\Vert^2$ (dotted: originals)", color=COLOURS[1])
        other.grid(False)
        return drawn


def draw_reconstructions(originals: Tensor, trips: Sequence[RoundTrip]) -> "Figure":
    """What comes back from every depth above, the error over depth below."""
    depths = [trip.depth for trip in trips]
    titles = ["original", *(f"{depth:g}" for depth in depths)]
    with _gallery([originals, *(trip.images for trip in trips)], titles) as (drawn, ax):
        ax.plot(depths, [trip.error * 127.5 for trip in trips], color=COLOURS[0], marker="o", label="root mean square")
        ax.plot(
            depths, [trip.largest * 127.5 for trip in trips], color=COLOURS[1], marker="s", ls="--", label="largest"
        )
        ax.set(xlabel="depth: the share of timesteps inverted", ylabel="round-trip error, of 255", yscale="log")
        ax.legend()
        return drawn


@contextmanager
def _gallery(columns: Sequence[Tensor], titles: Sequence[str]) -> Iterator[tuple["Figure", "Axes"]]:
    """A figure with a table of images above, a column a tensor (N, C, H, W), and the empty axes below, in one style."""
    images = torch.stack([column[:ROWS_DRAWN] for column in columns], dim=1)
    across, channels, width = images.shape[1], images.shape[2], images.shape[4]
    grid = make_grid(images.flatten(0, 1), columns=across).permute(1, 2, 0).numpy()
    picture_inches = 6.3 * grid.shape[0] / grid.shape[1]
    with figure(2, 1, picture_inches + 2.8) as (drawn, axes):
        axes[0, 0].get_gridspec().set_height_ratios([picture_inches, 2.4])
        ax = axes[0, 0]
        ax.imshow(grid[..., 0] if channels < 3 else grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
        ax.grid(False)
        ax.set_frame_on(False)
        ax.set_yticks([])
        ax.tick_params(length=0, labelbottom=False, labeltop=True)
        ax.set_xticks((np.arange(across) + 0.5) * (width + 2) + 1, titles)
        yield drawn, axes[1, 0]
