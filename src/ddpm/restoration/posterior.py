"""Restore degraded images with a trained model: several posterior samples of each, their mean and their spread."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.hardware import Precision
from ddpm.model import Labels, Model
from ddpm.randomness import ImageNoise, derive_seed
from ddpm.restoration.methods import find_method
from ddpm.restoration.operator import LinearOperator
from ddpm.restoration.tiles import TiledDenoiser, TileGrid
from ddpm.samplers.step import Callback
from ddpm.samplers.timesteps import Spacing, timestep_grid

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
    schedule = model.process.schedule
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
        results.append(x_0.float().clamp(-1, 1).cpu())
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
