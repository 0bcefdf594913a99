"""Restore degraded images: posterior samples, their mean and their standard deviation.

Images larger than the model are denoised as overlapping tiles of one global x_t, averaged at every step. Because the
average happens inside every step, neighbouring tiles agree and no seam is left (the idea of MultiDiffusion, Bar-Tal et
al. 2023, applied to the predicted x_0).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.hardware import Precision
from ddpm.common.pixels import final_images
from ddpm.common.randomness import ImageNoise, derive_seed
from ddpm.model import Labels, Model
from ddpm.restoration.methods import find_method
from ddpm.restoration.operator import LinearOperator
from ddpm.samplers.algorithms import Callback
from ddpm.samplers.denoiser import Denoiser, Prediction
from ddpm.samplers.grid import Spacing, timestep_grid

NORMAL_MAD = 0.6744897501960817  # the median of |z| for standard normal z
MIN_BLOCKS = 16


def estimate_noise(y: Tensor, known: Tensor | None = None) -> float:
    """σ of the noise on one picture y (C, H, W), in y's units, from its finest diagonal Haar details.

    On smooth ground the detail (a - b - c + d)/2 of a 2×2 block holds noise alone, with the noise's own deviation;
    the median over all blocks passes over edges (Donoho & Johnstone 1994). Noise that was cut off at black or white
    before y was stored is underestimated: by half where the whole ground is black.

    `known`: bool (C, H, W) or (H, W), where y holds anything. Raises UserError where fewer than 16 blocks are known.
    """
    if y.ndim != 3 or min(y.shape[-2:]) < 2:
        raise UserError("the noise can only be estimated on pictures of at least 2×2; give its σ instead")
    known = torch.ones_like(y, dtype=torch.bool) if known is None else known.bool().expand_as(y)
    a, b, c, d = _quarters(y.double())
    usable = torch.stack(_quarters(known)).all(0)
    if usable.sum() < MIN_BLOCKS:
        raise UserError("too few neighbouring pixels are known to estimate the noise; give its σ instead")
    return float(((a - b - c + d) / 2)[usable].abs().median() / NORMAL_MAD)


def _quarters(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four pixels of every 2×2 block, as four images of half the size."""
    even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    return even[..., ::2, ::2], even[..., ::2, 1::2], even[..., 1::2, ::2], even[..., 1::2, 1::2]


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
        self.diffusion, self.schedule = denoiser.diffusion, denoiser.schedule

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
        return Prediction(x_0, self.diffusion.epsilon_from_x_0(x_0, x_t, t))


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


PIXEL_SCALE = 2.0  # σ is told for images in [0, 1]; ours are in [-1, 1]


@dataclass(frozen=True)
class Restored:
    """`samples`: (N, K, C, H, W) in [-1, 1] on the CPU, K draws from the posterior of each image."""

    samples: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the draws, (N, C, H, W): closest to the truth in the mean square, and smoother than any draw."""
        return self.samples.mean(1)

    @property
    def std(self) -> Tensor:
        """The standard deviation of every pixel over the draws, (N, C, H, W), in [0, 1] units; 0 where K = 1."""
        return self.samples.std(1, correction=0) / PIXEL_SCALE


def restore(
    model: Model,
    y: Tensor,
    operator: LinearOperator | Callable[[Tensor], Tensor],
    *,
    method: str = "ddnm",
    noise: float = 0.0,
    samples: int = 1,
    image_size: Sequence[int] | None = None,
    steps: int | None = None,
    spacing: Spacing = "trailing",
    labels: Labels = None,
    guidance: float = 1.0,
    seed: int = 0,
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    precision: Precision = "auto",
    callback: Callback | None = None,
    **method_options: float,
) -> Restored:
    """Draw images x given y = H x + noise, for a batch that shares one operator.

    Args:
        y: (N, ...) as the operator gives for images in [-1, 1] (a picture of the degraded image, where it is one).
        operator: see `ddpm.restoration.operators`; DPS also takes any differentiable function of (N, C, H, W).
        method: ddnm, ddrm, repaint or dps; `method_options` go to it (eta, travel_repeats, scale, …).
        noise: σ of y's Gaussian noise, in units of the [0, 1] image.
        samples: how many draws an image, K.
        image_size: (H, W) of x where the operator is a plain function; an image larger than the model's is restored
            by overlapping tiles.
        labels: a class for all images, or one an image; None leaves a class-conditional model without a class.
        names: what each image's noise is drawn by (with the seed), so that it does not depend on its batch; by
            default its place.
        batch_size: network inputs a forward pass.
    """
    chosen = find_method(method)
    chosen.check(operator, noise)
    size = model.default_batch_size if batch_size is None else batch_size
    if samples < 1 or size < 1:
        raise UserError(f"samples and batch size must be at least 1, not {samples} and {size}")
    if not len(y):
        raise UserError("there are no images to restore")
    names = list(map(str, range(len(y)))) if names is None else list(names)
    shape = _image_shape(model, operator, image_size)
    if isinstance(operator, LinearOperator):
        operator.check(y)
    grid = TileGrid(shape[1:], model.image_shape[1:])
    schedule = model.diffusion.schedule
    steps = min(chosen.steps, schedule.timesteps) if steps is None else steps
    timesteps = timestep_grid(schedule, steps, spacing)
    classes = _classes(model, labels, len(y))

    device = model.device
    if isinstance(operator, LinearOperator) and operator.device != device:
        operator = copy.deepcopy(operator).to(device)  # a module moves in place, and this one is the caller's
    jobs = [(image, draw) for image in range(len(y)) for draw in range(samples)]
    per_run = max(1, size // len(grid))
    results = []
    for start in range(0, len(jobs), per_run):
        part = jobs[start : start + per_run]
        images = torch.tensor([image for image, _ in part])
        denoiser = model.denoiser(
            None if classes is None else classes[images].repeat(len(grid)),
            guidance=guidance,
            batch_size=size,
            precision=precision,
        )
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "restore", names[image], draw)) for image, draw in part
        ]
        x_0 = chosen.run(
            denoiser if len(grid) == 1 else TiledDenoiser(denoiser, grid),
            y[images].to(device),
            operator,
            PIXEL_SCALE * noise,
            timesteps,
            noise=ImageNoise(generators, shape, device=device),
            callback=callback,
            **method_options,
        )
        results.append(final_images(x_0))
    return Restored(torch.cat(results).unflatten(0, (len(y), samples)))


def _image_shape(model: Model, operator: object, image_size: Sequence[int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the restored image; its channels must be the model's."""
    height, width = image_size or model.image_shape[1:]
    shape = operator.image_shape if isinstance(operator, LinearOperator) else (model.image_shape[0], height, width)
    if shape[0] != model.image_shape[0]:
        raise UserError(f"the model restores images of {model.image_shape[0]} channels; this one has {shape[0]}")
    return shape


def _classes(model: Model, labels: Labels, count: int) -> Tensor | None:
    """One label an image, or None: a class-conditional model is then asked for no class, if it knows that."""
    if labels is None:
        return None
    classes = model.resolve_labels(labels) or []
    if len(classes) not in (1, count):
        raise UserError(f"{len(classes)} labels for {count} images: give one for all, or one an image")
    return torch.tensor(classes * (count if len(classes) == 1 else 1))
