"""Image files to uint8 tensors: limits on what a file may cost, decoding, and resizing to one size."""

import io
import math
import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.data.config import SMALLEST_SIDE, Preprocessing  # noqa: F401

MOST_PIXELS = 2**26  # of one image: 8192 x 8192
MOST_FILE_BYTES = 2**28  # of one encoded image
MOST_MEMORY_BYTES = 2**32  # a decoded set up to this size stays in memory, a larger one is decoded as it is used
MOST_DEFLATE_RATIO = 1100  # deflate cannot pack tighter than about 1032 to 1
MOST_CLASSES = 2**16
TURNS_WRITING = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


class BrokenFile(Exception):
    """One file that cannot be used; the message says why. It is skipped, counted and named."""


def check_size(height: int, width: int, smallest: int = SMALLEST_SIDE) -> None:
    """Refuse an image that is too small to be of use or too large to be decoded safely."""
    if min(height, width) < smallest:
        raise BrokenFile(f"{width}x{height} is smaller than {smallest} pixels")
    if height * width > MOST_PIXELS:
        raise BrokenFile(f"{width}x{height} is more than {MOST_PIXELS:,} pixels")


def check_array(path: Path, shape: tuple[int, ...], itemsize: int, stored_bytes: int, zipped: bool) -> int:
    """The bytes of the array that a header announces, refused where the file cannot hold them."""
    size = math.prod(shape) * itemsize
    if not 0 < size <= stored_bytes * (MOST_DEFLATE_RATIO if zipped else 1):
        raise UserError(
            f"{path}: its header announces {'x'.join(map(str, shape))} values, which the file does not hold"
        )
    if zipped and size > MOST_MEMORY_BYTES:
        raise UserError(f"{path} unpacks to {size:,} bytes; a set that large is read from plain files")
    return size


def read_bounded(file, size: int) -> bytearray:
    """At most `size` bytes, taken piece by piece, so that only what is really there costs memory."""
    data = bytearray()
    while len(data) < size and (piece := file.read(min(size - len(data), 1 << 20))):
        data += piece
    return data


def printable(name: str) -> str:
    """A file's name as it may be shown and stored: valid UTF-8 and nothing that a terminal obeys.

    What is not is spelled out, as in K\\xf6ln, and not all the same: names that differ may be those of two classes.
    """
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if _shown(letter) else letter.encode("unicode_escape").decode() for letter in name)


def _shown(letter: str) -> bool:
    """Spaces of any width and joiners too, which names in many scripts have; but nothing that turns writing around."""
    return letter.isprintable() or (unicodedata.category(letter) in ("Zs", "Cf") and letter not in TURNS_WRITING)


# Pillow warns of odd metadata; here the pixels decide. `catch_warnings` would silence one call, but not among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What Pillow may be asked to open. Not EPS (runs Ghostscript), nor the formats nobody keeps photographs in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNREAD = (".heic", ".heif", ".avif", ".jxl")  # of photographs too, but not read: named, so that nobody misses them
UNREAD_FORMAT = "its format is not read: convert it to JPEG or PNG"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, channels: int = 3, background=255, smallest: int = SMALLEST_SIDE) -> Tensor:
    """One image file as uint8 (channels, H, W), at its own size.

    The first frame of an animation; turned as its EXIF says; alpha flattened on `background` (a grey level or
    [r, g, b]) unless `channels` keeps it (2 or 4). 16-bit grey becomes the nearest of 256 levels; colour profiles are
    not applied.

    Raises UserError where the file is missing, is no image, or is smaller (than `smallest`) or larger than
    `ddpm.data.images` allow.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        return to_tensor(decode(data, channels, background, smallest))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except BrokenFile as error:
        raise UserError(f"{path} cannot be used as an image: {error}") from error


def decode(data: bytes, channels: int, background=255, smallest: int = SMALLEST_SIDE) -> Image.Image:
    """The encoded image as a Pillow image of mode L, LA, RGB or RGBA, at its own size.

    Raises BrokenFile, whatever is wrong. The header is judged before any pixel is decoded.
    """
    if len(data) > MOST_FILE_BYTES:
        raise BrokenFile(f"the file is larger than {MOST_FILE_BYTES:,} bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.height, image.width, smallest)
            image.load()
            return in_mode(_turned(image), channels, background)
    except BrokenFile:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenFile("it would unpack to too many pixels") from error
    except Exception as error:  # decoders raise anything at all on damaged data
        raise BrokenFile(_reason(error)) from error


def in_mode(image: Image.Image, channels: int, background=255) -> Image.Image:
    """A Pillow image of any mode as L, LA, RGB or RGBA; alpha without a channel of its own is flattened."""
    image = _eight_bits(image)
    mode = MODES[channels]
    if image.has_transparency_data or "A" in image.mode or "a" in image.mode:
        image = image.convert("RGBA")
        if channels in (1, 3):
            behind = Image.new("RGBA", image.size, _colour(background))
            image = Image.alpha_composite(behind, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image of mode L, LA, RGB or RGBA as uint8 (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits, 32-bit integers and floats as mode L; Pillow's own conversion would clip them at 255."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # false for NaN too
            raise BrokenFile("its floating-point pixels are not in [0, 1]")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenFile("its integer pixels are not in 0..65535")
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    return image


def _turned(image: Image.Image) -> Image.Image:
    """The image the way up that its EXIF orientation says; damaged EXIF is as good as none."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _colour(background) -> tuple[int, int, int, int]:
    red, green, blue = (background,) * 3 if isinstance(background, int) else background
    return (red, green, blue, 255)


def _reason(error: Exception) -> str:
    if "cannot identify image file" in str(error):
        return "it is not an image"
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


RESAMPLING = Image.Resampling.BICUBIC  # Pillow's is antialiased: the kernel widens as the image shrinks


def fit(image: Image.Image, size: tuple[int, int], how: str = "crop", background=255) -> Image.Image:
    """The image at exactly `size` (height, width).

    `crop`: the largest centred window of the right aspect. `pad`: the whole image, centred on `background`. An image
    that has the size already is returned untouched.
    """
    height, width = size
    if image.size == (width, height):
        return image
    if how == "crop":
        return image.resize((width, height), RESAMPLING, box=_window(image, height, width))
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    frame = Image.new(image.mode, (width, height), _fill(image.mode, background))
    frame.paste(image.resize(inner, RESAMPLING), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return frame


def _window(image: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest centred window of the right aspect.

    Rounding must not take it over the image's edge, not by 1e-15: Pillow refuses such a window.
    """
    scale = min(image.width / width, image.height / height)
    left, top = max(0, image.width - width * scale) / 2, max(0, image.height - height * scale) / 2
    return (left, top, image.width - left, image.height - top)


def _fill(mode: str, background) -> tuple[int, ...]:
    """The background in the image's mode; where the image keeps its alpha, padding is transparent."""
    red, green, blue = (background,) * 3 if isinstance(background, int) else background
    grey = round(0.299 * red + 0.587 * green + 0.114 * blue)  # ITU-R 601, as Pillow's own conversion
    return {"L": (grey,), "LA": (grey, 0), "RGB": (red, green, blue), "RGBA": (red, green, blue, 0)}[mode]
