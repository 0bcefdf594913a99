"""Images larger than the model: one global x_t, its overlapping tiles denoised apart and averaged at every step.

Because the average happens inside every step, and not once on finished tiles, neighbours agree on what they share
and no seam is left (the idea of MultiDiffusion, Bar-Tal et al. 2023, on x̂_0). Samplers and operators see one large
image and need not know.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.samplers.denoiser import Denoiser, Prediction

OVERLAP = 0.5  # of a tile with its neighbour: with half, every pixel away from the border is seen by four tiles


class TileGrid:
    """Where the tiles lie: rows and columns of top-left corners, the last ones flush with the border."""

    def __init__(self, image_size: Sequence[int], tile_size: Sequence[int]):
        if any(image < tile for image, tile in zip(image_size, tile_size, strict=True)):
            raise UserError(
                f"the image, {image_size[0]}×{image_size[1]}, is smaller than the model's {tile_size[0]}×{tile_size[1]}"
            )
        self.tile_size = tuple(tile_size)
        tops, lefts = (_starts(image, tile) for image, tile in zip(image_size, tile_size, strict=True))
        self.corners = [(top, left) for top in tops for left in lefts]

    def __len__(self) -> int:
        return len(self.corners)


class TiledDenoiser:
    """A denoiser of tiles as a denoiser of large images.

    `denoiser` sees tile-major batches: all images' first tiles, then all images' second tiles, …; labels, where it
    has any, must be repeated accordingly.
    """

    def __init__(self, denoiser: Denoiser, grid: TileGrid):
        self.denoiser, self.grid = denoiser, grid
        self.process, self.schedule = denoiser.process, denoiser.schedule

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """The weighted mean of the tiles' x̂_0, and the ε that belongs to it."""
        height, width = self.grid.tile_size
        tiles = [x_t[..., top : top + height, left : left + width] for top, left in self.grid.corners]
        answers = self.denoiser(torch.cat(tiles), t).x_0.chunk(len(tiles))
        window = _window(height, width).to(x_t)
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        for (top, left), x_0 in zip(self.grid.corners, answers, strict=True):
            place = (..., slice(top, top + height), slice(left, left + width))
            total[place] += window * x_0
            weight[place] += window
        x_0 = total / weight
        return Prediction(x_0, self.process.epsilon_from_x_0(x_0, x_t, t))


def _starts(image: int, tile: int) -> list[int]:
    """Evenly spread over the image, neighbours overlapping by `OVERLAP` of a tile or more."""
    stride = max(1, int(tile * (1 - OVERLAP)))
    count = math.ceil((image - tile) / stride) + 1
    if count == 1:
        return [0]
    return [round(i * (image - tile) / (count - 1)) for i in range(count)]


def _window(height: int, width: int) -> Tensor:
    """A tile's weight falls smoothly to nearly nothing at its border, so that no pixel sees a tile begin."""
    rows, columns = (torch.sin(math.pi * (torch.arange(size) + 0.5) / size) ** 2 for size in (height, width))
    return torch.outer(rows, columns)
