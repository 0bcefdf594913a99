"""Pixels as uint8 in 0..255 and as float in [-1, 1]; grids of images and PNG files, which say how they were made."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_path, check_output
from ddpm.common.names import VERSION


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
        to_pillow(image).save(beside, format="PNG", pnginfo=png_text())
    return path


def to_pillow(image: Tensor) -> Image.Image:
    """Convert uint8 (C, H, W) of 1 to 4 channels to a Pillow image."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array, MODES[array.shape[2]])


ORIGIN = "ddpm"  # keyword of the text chunk
_origin: ContextVar[Mapping[str, Any] | None] = ContextVar("origin", default=None)


@contextmanager
def made_by(origin: Mapping[str, Any] | None) -> Iterator[None]:
    """Inside the block, every PNG, GIF and npz of this package says how it was made: `origin`, as JSON values."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def origin_of(command: str, weights: str | None, **more: Any) -> dict[str, Any]:
    """Return an origin: the command that makes the file, the version, the hash of the weights, and `more`."""
    known = {"command": command, "version": VERSION}
    return known | ({} if weights is None else {"weights": weights}) | more


def origin_text(**more: Any) -> str:
    """Return how the files written now are made, see `made_by`, with `more` of this file, as JSON; empty if unknown."""
    origin = _origin.get()
    return "" if origin is None else json.dumps({**origin, **more})


def png_text(**more: Any) -> PngImagePlugin.PngInfo | None:
    """Return `origin_text` as the text chunk of a PNG."""
    text = origin_text(**more)
    if not text:
        return None
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(ORIGIN, text)
    return chunks


def read_origin(path: Path) -> dict[str, Any]:
    """Read how a PNG, a GIF or an npz of this package was made; raise UserError if it does not say so."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text: Any = archive.comment
        else:
            with Image.open(path, formats=("PNG", "GIF")) as image:
                text = image.info.get(ORIGIN) or image.info.get("comment", b"")
        origin = json.loads(text)
        if not isinstance(origin, dict):
            raise ValueError
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'it is no PNG, GIF or npz'}") from error
    except ValueError as error:
        raise UserError(f"{path} does not say how it was made") from error
    return origin
