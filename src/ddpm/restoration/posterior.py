"""Restore degraded images: samples from the posterior, their mean and their standard deviation.

Images larger than the model are denoised as overlapping tiles of one global x_t, averaged at every step. Because the
average happens inside every step, neighbouring tiles agree and no seam is left (the idea of MultiDiffusion, Bar-Tal et
al. 2023, applied to the predicted x_0).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ddpm.common.errors import UserError, nearest
from ddpm.common.randomness import ImageNoise, derive_seed
from ddpm.model import Model, SamplingOptions
from ddpm.restoration.methods import Method, find_method
from ddpm.restoration.operator import LinearOperator
from ddpm.samplers.algorithms import Callback
from ddpm.samplers.denoiser import Denoiser, Prediction
from ddpm.samplers.grid import timestep_grid

NORMAL_MAD = 0.6744897501960817  # the median of |z| for standard normal z
MIN_BLOCKS = 16


def estimate_noise(y: Tensor, known: Tensor | None = None) -> float:
    """Estimate σ of the noise on one picture y (C, H, W), in y's units, from its finest diagonal Haar details.

    In smooth regions the detail (a - b - c + d)/2 of a 2×2 block contains only noise, with the same deviation. The
    median over all blocks ignores edges (Donoho & Johnstone 1994). Noise that was clipped at black or white before y
    was stored is underestimated: by half if the whole background is black.

    Args:
        y: (C, H, W).
        known: bool (C, H, W) or (H, W), true for the pixels that y contains; default: all.

    Raises UserError if y is smaller than 2×2, or fewer than 16 blocks are known.
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
    """The four pixels of each 2×2 block, as four images of half the size."""
    even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    return even[..., ::2, ::2], even[..., ::2, 1::2], even[..., 1::2, ::2], even[..., 1::2, 1::2]


OVERLAP = 0.5  # fraction of a tile; with half, each pixel away from the border is in four tiles


class TileGrid:
    """Top-left corners of the tiles, row by row; the last ones end at the image's border.

    Raises UserError if the image is smaller than a tile.
    """

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
    """Apply a denoiser of tiles to large images.

    Batches are tile-major: the first tiles of all images, then the second tiles of all images, and so on. The
    denoiser's labels must be repeated in this order.
    """

    def __init__(self, denoiser: Denoiser, grid: TileGrid):
        self.denoiser, self.grid = denoiser, grid
        self.diffusion, self.schedule = denoiser.diffusion, denoiser.schedule

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """Return the weighted mean of the tiles' x̂_0, (N, C, H, W), and the matching ε̂."""
        height, width = self.grid.tile_size
        tiles = [x_t[..., top : top + height, left : left + width] for top, left in self.grid.corners]
        denoised = self.denoiser(torch.cat(tiles), t).x_0.chunk(len(tiles))
        window = _window(height, width).to(x_t)
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        for (top, left), x_0 in zip(self.grid.corners, denoised, strict=True):
            place = (..., slice(top, top + height), slice(left, left + width))
            total[place] += window * x_0
            weight[place] += window
        x_0 = total / weight
        return Prediction(x_0, self.diffusion.epsilon_from_x_0(x_0, x_t, t))


def _starts(image: int, tile: int) -> list[int]:
    """Evenly spaced positions along one side; neighbours overlap by at least `OVERLAP` of a tile."""
    stride = max(1, int(tile * (1 - OVERLAP)))
    count = math.ceil((image - tile) / stride) + 1
    if count == 1:
        return [0]
    return [round(i * (image - tile) / (count - 1)) for i in range(count)]


def _window(height: int, width: int) -> Tensor:
    """Weights (height, width) of a tile's pixels, nearly 0 at its border, so that no edge of a tile is visible."""
    rows, columns = (torch.sin(math.pi * (torch.arange(size) + 0.5) / size) ** 2 for size in (height, width))
    return torch.outer(rows, columns)


PIXEL_SCALE = 2.0  # σ is given for images in [0, 1]; the model's are in [-1, 1]


@dataclass(frozen=True)
class Restored:
    """Posterior samples of each image: `samples` (N, K, C, H, W) in [-1, 1] on the CPU."""

    samples: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the samples, (N, C, H, W): the smallest mean squared error, but smoother than any sample."""
        return self.samples.mean(1)

    @property
    def std(self) -> Tensor:
        """Standard deviation of each pixel over the samples, (N, C, H, W), in [0, 1] units; 0 if K = 1."""
        return self.samples.std(1, correction=0) / PIXEL_SCALE


def restore(
    model: Model,
    y: Tensor,
    operator: LinearOperator | Callable[[Tensor], Tensor],
    options: SamplingOptions | None = None,
    *,
    method: str = "ddnm",
    noise: float = 0.0,
    samples: int = 1,
    image_size: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    callback: Callback | None = None,
    **changes: Any,
) -> Restored:
    """Sample images x given y = H x + noise, for a batch that shares one operator.

    Args:
        y: (N, *measurement_shape), as the operator returns it for images in [-1, 1].
        operator: see `ddpm.restoration.operators`. DPS also takes any differentiable function of (N, C, H, W).
        options: steps (default: a student's own, else the method's), spacing, labels (one class for all images, or one
            per image; None means no class), guidance, guidance_rescale, clip, seed, batch_size (network inputs per
            forward pass) and precision. The sampler and its own options are not used.
        method: ddnm, ddrm, repaint or dps.
        noise: σ of y's Gaussian noise, in units of the [0, 1] image.
        samples: posterior samples per image, K.
        image_size: (H, W) of x if the operator is a plain function. An image larger than the model's is restored by
            overlapping tiles.
        names: one per image, default 0, 1, …. An image's noise depends only on the seed and its name, not on its batch.
        callback: called with a `Step` after every step of every batch.
        changes: options of the method (eta, travel_repeats, scale, …), and fields that replace those of `options`.

    Raises UserError if the method cannot undo this degradation, the shapes do not match, or an option is not possible.
    """
    chosen = find_method(method)
    chosen.check(operator, noise)
    if model.student and chosen.gradual:
        raise UserError(
            f"{method} changes x_t a little in each of {chosen.steps:,} steps, and this model was distilled to "
            f"{model.student.steps}: use ddrm or ddnm, or the model that it was distilled from"
        )
    given, changes = _split(chosen, changes)
    options = SamplingOptions.of(options, **changes)
    if samples < 1:
        raise UserError(f"the number of samples must be at least 1, not {samples}")
    if not len(y):
        raise UserError("there are no images to restore")
    names = list(map(str, range(len(y)))) if names is None else list(names)
    shape = _image_shape(model, operator, image_size)
    if isinstance(operator, LinearOperator):
        operator.check(y)
    tiles = TileGrid(shape[1:], model.image_shape[1:])
    labels = model.labels_per_image(options.labels, len(y))
    schedule = model.diffusion.schedule
    usual = model.student.steps if model.student else chosen.default_steps(schedule)
    steps = usual if options.steps is None else options.steps
    # without the labels, for which None means "all classes in turn" if images are sampled from nothing
    options = replace(options, steps=steps, spacing=options.spacing or "trailing", labels=None).resolved(model)
    assert options.steps is not None
    assert options.spacing is not None
    assert options.batch_size is not None
    timesteps = timestep_grid(schedule, options.steps, options.spacing)

    device = model.device
    if isinstance(operator, LinearOperator) and operator.device != device:
        operator = copy.deepcopy(operator).to(device)  # a module moves in place, and this one is the caller's
    jobs = [(image, sample) for image in range(len(y)) for sample in range(samples)]
    per_run = max(1, options.batch_size // len(tiles))
    results = []
    for start in range(0, len(jobs), per_run):
        part = jobs[start : start + per_run]
        images = torch.tensor([image for image, _ in part])
        denoiser = model.denoiser(None if labels is None else labels[images].repeat(len(tiles)), options=options)
        seeds = [derive_seed(options.seed, "restore", names[image], sample) for image, sample in part]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x_0 = chosen.run(
            denoiser if len(tiles) == 1 else TiledDenoiser(denoiser, tiles),
            y[images].to(device),
            operator,
            PIXEL_SCALE * noise,
            timesteps,
            noise=ImageNoise(generators, shape, device=device),
            callback=callback,
            **given,
        )
        results.append(model.finish(x_0))
    return Restored(torch.cat(results).unflatten(0, (len(y), samples)))


def _split(method: Method, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the method, and the fields of `SamplingOptions`. The method comes first: `eta` is in both."""
    known = [*method.options, *(field.name for field in fields(SamplingOptions))]
    for name in changes:
        if name not in known:
            raise UserError(f"{method.name} has no option {name!r}; {nearest(name, known)}")
    given = {name: value for name, value in changes.items() if name in method.options}
    return given, {name: value for name, value in changes.items() if name not in given}


def _image_shape(model: Model, operator: object, image_size: Sequence[int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the restored image; its channels must be the model's."""
    height, width = image_size or model.image_shape[1:]
    shape = operator.image_shape if isinstance(operator, LinearOperator) else (model.image_shape[0], height, width)
    if shape[0] != model.image_shape[0]:
        raise UserError(f"the model restores images of {model.image_shape[0]} channels; this one has {shape[0]}")
    return shape
