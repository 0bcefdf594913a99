"""The tasks of `ddpm restore`: from a name and its parameters to an operator, and from a file to a measurement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.common.pixels import to_float
from ddpm.data.images import read_image
from ddpm.restoration import operators as kernels
from ddpm.restoration.operator import SpectralOperator
from ddpm.restoration.operators import (
    Channels,
    CircularBlur,
    Denoising,
    Filter,
    Inpainting,
    separable_blur,
    superresolution,
)

TaskName = Literal["denoise", "inpaint", "superresolve", "deblur", "colorize"]


@dataclass(frozen=True)
class Task:
    """What was done to the image.

    scale, filter: of superresolve. mask: of inpaint, a picture, see `marked`, `half` (the right one) or
    `random:SHARE`. kernel: of deblur, `gaussian:SIGMA`, `box:SIZE`, `motion:LENGTH[:DEGREES]` or a file (a picture
    or .npy). Gaussian and box blur continue the image by its mirror image, the others periodically.
    """

    name: TaskName
    scale: int = 2
    filter: Filter = "average"
    mask: str | None = None
    kernel: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.name not in get_args(TaskName):
            raise UserError(f"no task named {self.name!r}; there are {', '.join(get_args(TaskName))}")
        if self.scale < 2:
            raise UserError(f"the scale must be a whole number from 2, not {self.scale}")
        if self.name == "inpaint" and self.mask is None:
            raise UserError("inpaint needs --mask: a picture whose white part is lost, half, or random:SHARE")
        if self.name == "deblur" and self.kernel is None:
            raise UserError("deblur needs --kernel: gaussian:SIGMA, box:SIZE, motion:LENGTH:DEGREES or a file")

    def restored_shape(self, picture: Sequence[int], channels: int) -> tuple[int, int, int]:
        """(C, H, W) of the image that gave this picture (C', h, w) of it."""
        factor = self.scale if self.name == "superresolve" else 1
        return channels, picture[1] * factor, picture[2] * factor

    def operator(self, image_shape: tuple[int, int, int]) -> SpectralOperator:
        """The degradation of images (C, H, W)."""
        match self.name:
            case "denoise":
                return Denoising(image_shape)
            case "inpaint":
                return self._inpainting(image_shape)
            case "superresolve":
                return superresolution(image_shape, self.scale, self.filter)
            case "deblur":
                return self._blur(image_shape)
            case "colorize":
                return Channels.grey(image_shape)

    def _inpainting(self, image_shape: tuple[int, int, int]) -> Inpainting:
        assert self.mask is not None
        if self.mask == "half":
            known = torch.arange(image_shape[2]) < image_shape[2] // 2
            return Inpainting(image_shape, known.expand(image_shape[1:]))
        if self.mask.startswith("random:"):
            return Inpainting.random(image_shape, number(self.mask.split(":")[1], "--mask random:SHARE"), self.seed)
        mask = user_path(self.mask)
        if not mask.is_file():
            raise UserError(f"no mask {self.mask}: give a picture whose white part is lost, half, or random:SHARE")
        lost = marked(read_image(mask, channels=2, smallest=1))
        if not lost.any():
            raise UserError(f"the mask {self.mask} is empty: paint white what is to be restored")
        return Inpainting(image_shape, ~lost)

    def _blur(self, image_shape: tuple[int, int, int]) -> SpectralOperator:
        assert self.kernel is not None
        kind, *parameters = self.kernel.split(":")
        values = [number(word, f"--kernel {kind}") for word in parameters] if kind in KERNELS else []
        if kind in KERNELS and len(values) not in KERNELS[kind]:
            raise UserError(f"--kernel {self.kernel}: give gaussian:SIGMA, box:SIZE or motion:LENGTH:DEGREES")
        match kind:
            case "gaussian":
                taps = kernels.gaussian(values[0])
                return separable_blur(image_shape, taps, taps)
            case "box":
                taps = kernels.box(values[0])
                return separable_blur(image_shape, taps, taps)
            case "motion":
                return CircularBlur(image_shape, kernels.motion(*values))
        return CircularBlur(image_shape, kernels.from_file(self.kernel))


KERNELS = {"gaussian": (1,), "box": (1,), "motion": (1, 2)}  # how many numbers each takes
MARKED = 128  # of 255: from here on a mask's pixel counts


def marked(mask: Tensor) -> Tensor:
    """What a mask, uint8 (2, H, W) of grey and alpha, says is lost, as bool (H, W).

    Where it is transparent anywhere, what is painted, whatever its colour; in an opaque one, what is white.
    """
    grey, alpha = mask
    return (grey if (alpha == 255).all() else alpha) >= MARKED


def read_picture(path: str | Path, channels: int, background=255) -> Tensor:
    """An image file as float (channels, H, W) in [-1, 1]; colour is not thrown away unasked.

    background: a grey level or [r, g, b], on which alpha is flattened.
    """
    if channels != 1:
        return to_float(read_image(path, channels, background, smallest=1))
    colour = read_image(path, 3, background, smallest=1)
    if (colour != colour[:1]).any():
        raise UserError(f"{path} is a colour picture, but grey is needed here: convert it first")
    return to_float(colour[:1])


def number(word: str, flag: str) -> float:
    """A finite number out of a flag."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{flag} takes numbers, not {word!r}")
    return value
