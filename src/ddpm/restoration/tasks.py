"""Tasks of `ddpm restore`: make the operator of a named degradation, and read pictures and masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.common.pixels import to_float, to_pillow
from ddpm.data.images import ENDINGS, convert_command, read_image, to_tensor
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
    """The degradation of the image.

    Args:
        scale, filter: for superresolve.
        mask: for inpaint: a picture (see `lost_pixels`), a folder with one mask per picture, `half` (the right half
            is lost) or `random:FRACTION`.
        kernel: for deblur: `gaussian:SIGMA`, `box:SIZE`, `motion:LENGTH[:DEGREES]` or a file (a picture or .npy).
            Gaussian and box blur continue the image by its mirror image, the others periodically.
        seed: any whole number; chooses the pixels of `random:FRACTION`.
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
            raise UserError(
                "inpaint needs --mask: a picture whose white part is lost, a folder of them, half, or random:FRACTION"
            )
        if self.name == "deblur" and self.kernel is None:
            raise UserError("deblur needs --kernel: gaussian:SIGMA, box:SIZE, motion:LENGTH:DEGREES or a file")

    def restored_shape(self, picture: Sequence[int], channels: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the image whose degradation gives a picture (C', h, w)."""
        factor = self.scale if self.name == "superresolve" else 1
        return channels, picture[1] * factor, picture[2] * factor

    def for_picture(self, name: str) -> "Task":
        """Return the task of one picture: if `mask` is a folder, with the mask of the picture's name in it.

        name: relative path of the picture, without its ending. Raises UserError if the folder has no such mask.
        """
        if self.mask is None or not (folder := user_path(self.mask)).is_dir():
            return self
        endings = ["", *ENDINGS, *map(str.upper, ENDINGS)]
        masks = (folder / f"{name}{ending}" for ending in endings)
        found = next((path for path in masks if path.suffix.lower() in ENDINGS and path.is_file()), None)
        if found is None:
            raise UserError(f"{folder} has no mask for it: add {name}.png")
        return replace(self, mask=str(found))

    def operator(self, image_shape: tuple[int, int, int]) -> SpectralOperator:
        """Make the degradation of images (C, H, W)."""
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
            return Inpainting.random(image_shape, number(self.mask.split(":")[1], "--mask random:FRACTION"), self.seed)
        mask = user_path(self.mask)
        if not mask.is_file():
            raise UserError(
                f"no mask {self.mask}: give a picture whose white part is lost, a folder with one per picture, half, "
                "or random:FRACTION"
            )
        lost = lost_pixels(read_image(mask, channels=2, smallest=1))
        if not lost.any():
            raise UserError(f"the mask {self.mask} is empty: paint white what is to be restored")
        operator = Inpainting(image_shape, ~lost)
        operator.notes.append(f"{lost.float().mean():.0%} of the pixels are lost by the mask {mask.name}")
        return operator

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
MARKED = 128  # of 255: a mask's pixel counts from this value on
BRUSH_SPREAD = 8  # of 255: the grey values of painted pixels have a smaller standard deviation than a picture's
TINT = 16  # of 255: the channels of a grey scan differ less
TINTED_PIXELS = 0.99  # fraction of a scan's pixels for which this must hold


def marked(mask: Tensor) -> Tensor:
    """The painted pixels of a mask, uint8 (2, H, W) of grey and alpha, as bool (H, W).

    In a mask with transparency these are the opaque pixels of any colour; in an opaque mask, the white ones.
    """
    grey, alpha = mask
    return (grey if (alpha == 255).all() else alpha) >= MARKED


def lost_pixels(mask: Tensor) -> Tensor:
    """The pixels that a mask, uint8 (2, H, W) of grey and alpha, marks as lost, as bool (H, W).

    Painted pixels are lost (see `marked`), with one exception: if a mask is opaque almost everywhere and its opaque
    part has many grey values, it is the picture itself with the bad part erased. Then the transparent part is lost.
    """
    grey, alpha = mask
    opaque = alpha >= MARKED
    mostly_opaque = not opaque.all() and opaque.float().mean() > 0.5
    if mostly_opaque and grey[opaque].float().std() >= BRUSH_SPREAD:
        return ~opaque
    return marked(mask)


def read_picture(path: str | Path, channels: int, background=255, *, toned: bool = False) -> Tensor:
    """Read an image file as float (channels, H, W) in [-1, 1].

    Args:
        channels: 1 or 3. If 1, a slightly tinted scan is converted to grey.
        background: a grey level or [r, g, b], on which alpha is flattened.
        toned: convert any colour to grey, e.g. a sepia photograph.

    Raises UserError if the file cannot be read, or it has colour that would be lost.
    """
    if channels != 1:
        return to_float(read_image(path, channels, background, smallest=1))
    colour = read_image(path, 3, background, smallest=1)
    spread = colour.amax(0).int() - colour.amin(0).int()
    if not toned and (spread < TINT).float().mean() < TINTED_PIXELS:
        raise UserError(
            f"{path} is a colour picture, but this model is for grey ones: "
            f"convert it, e.g. with {convert_command(channels)}"
        )
    return to_float(to_tensor(to_pillow(colour).convert("L")))


def number(word: str, flag: str) -> float:
    """Read a finite number from the value of a flag."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{flag} takes numbers, not {word!r}")
    return value
