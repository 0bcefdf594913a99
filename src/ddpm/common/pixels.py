"""Pixels as uint8 in 0..255 and as float in [-1, 1]; grids of images and PNG files."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_path, check_output


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 0..255 to x/127.5 - 1, exactly the levels that the discretised likelihood expects."""
    return images.to(dtype) / 127.5 - 1


NOT_FINITE = (
    "the images hold numbers that are not finite (NaN or infinity): try precision fp32, less guidance or another "
    "sampler; if that does not help, use an earlier checkpoint"
)


def check_finite(images: Tensor, explain: Callable[[], str] = lambda: NOT_FINITE) -> Tensor:
    """Return the images; raise UserError with the text of `explain` if a value is NaN or infinite.

    Waits for the device, so call it once per batch, and before any clamp: that would turn infinity into white.
    """
    if not bool(torch.isfinite(images).all()):
        raise UserError(explain())
    return images


def final_images(x_0: Tensor, explain: Callable[[], str] = lambda: NOT_FINITE) -> Tensor:
    """Return samples as the user gets them, float32 in [-1, 1] on the CPU; see `check_finite` for the error."""
    return check_finite(x_0, explain).float().clamp(-1, 1).cpu()


def to_uint8(images: Tensor) -> Tensor:
    """Convert float images in [-1, 1] to round(127.5·(x + 1)), clipped to 0..255.

    Raises UserError if a value is not finite: as uint8 it would look like a black pixel.
    """
    return ((check_finite(images).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B in grey (ITU-R BT.601), as in Pillow's conversion
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def grey(colour: Sequence[int]) -> int:
    """Return the grey level of a colour (r, g, b), all in 0..255."""
    return round(sum(weight * level for weight, level in zip(LUMA, colour, strict=True)))


def make_grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Arrange images in a grid, row by row.

    Args:
        images: (N, C, H, W) float in [-1, 1]; values outside are clipped.
        columns: images per row; default: as square as possible.
        gap: white pixels between and around the images.

    Returns: uint8 (C, rows·(H+gap)+gap, columns·(W+gap)+gap).
    """
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"a grid is made of images (N, C, H, W), not of {tuple(images.shape)}")
    count, channels, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    grid = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index, image in enumerate(to_uint8(images.detach().cpu())):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid


def numbered(folder: Path) -> list[Path]:
    """Return the images NNNNNN.png of a folder, in the order of their numbers; other files are ignored."""
    return sorted((path for path in folder.glob("*.png") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def save_grid(
    images: Tensor, path: str | Path, columns: int | None = None, *, gap: int = 2, overwrite: bool = False
) -> Path:
    """Write `make_grid` of float images (N, C, H, W) in [-1, 1] as a PNG; see `save_picture`."""
    return save_picture(make_grid(images, columns, gap), path, overwrite=overwrite)


def save_picture(image: Tensor, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write one uint8 image (C, H, W), 1 to 4 channels, as a PNG.

    It is written to a temporary name and renamed, so the file is complete or absent. Raises UserError if the name does
    not end in .png, or exists and `overwrite` is False; RunStopped if the disk is full.
    """
    path = check_output(path, (".png",), overwrite=overwrite)
    with atomic_path(path) as beside:
        to_pillow(image).save(beside, format="PNG")
    return path


def to_pillow(image: Tensor) -> Image.Image:
    """Convert uint8 (C, H, W) of 1 to 4 channels to a Pillow image."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array, MODES[array.shape[2]])
