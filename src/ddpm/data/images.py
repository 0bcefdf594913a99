"""From image files to uint8 tensors: size limits, decoding, and resizing to one size."""

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
from ddpm.common.pixels import MODES, grey
from ddpm.data.config import SMALLEST_SIDE

MOST_PIXELS = 2**26  # in one image: 8192 x 8192
MOST_FILE_BYTES = 2**28  # in one encoded image
MOST_MEMORY_BYTES = 2**32  # a decoded set up to this size is kept in memory
MOST_DEFLATE_RATIO = 1100  # deflate compresses at most about 1032 to 1
MOST_CLASSES = 2**16
DIRECTION_CONTROLS = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


class BrokenFile(Exception):
    """A file that cannot be used, and why. Data sets skip it, count it and name it."""


def check_size(height: int, width: int, smallest: int = SMALLEST_SIDE) -> None:
    """Raise BrokenFile if an image has a side below `smallest` pixels, or too many pixels to be decoded safely."""
    if min(height, width) < smallest:
        raise BrokenFile(f"{width}x{height} is smaller than {smallest} pixels")
    if height * width > MOST_PIXELS:
        raise BrokenFile(f"{width}x{height} is more than {MOST_PIXELS:,} pixels")


def check_array(path: Path, shape: tuple[int, ...], itemsize: int, stored_bytes: int, zipped: bool) -> int:
    """Return the size in bytes of the array that a header announces. Raise UserError if the file cannot hold it.

    itemsize: bytes per value. stored_bytes: size of the array in the file. zipped: it is compressed by deflate.
    """
    size = math.prod(shape) * itemsize
    if not 0 < size <= stored_bytes * (MOST_DEFLATE_RATIO if zipped else 1):
        raise UserError(
            f"{path}: its header announces {'x'.join(map(str, shape))} values, which the file does not hold"
        )
    if zipped and size > MOST_MEMORY_BYTES:
        raise UserError(f"{path} unpacks to {size:,} bytes; store so large a set uncompressed")
    return size


def read_bounded(file, size: int) -> bytearray:
    """Read at most `size` bytes, in pieces, so that a header with a false size costs no memory."""
    data = bytearray()
    while len(data) < size and (piece := file.read(min(size - len(data), 1 << 20))):
        data += piece
    return data


def printable(name: str) -> str:
    """Return a file's name as valid UTF-8 without control characters, safe to print and to store.

    Other bytes are written as escapes, as in K\\xf6ln. Names that differ stay different: they may be two classes.
    """
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if _is_safe(letter) else letter.encode("unicode_escape").decode() for letter in name)


def _is_safe(letter: str) -> bool:
    """Whether a character may be printed: also spaces of any width and joiners, which many scripts need."""
    return letter.isprintable() or (unicodedata.category(letter) in ("Zs", "Cf") and letter not in DIRECTION_CONTROLS)


# Pillow warns about odd metadata, which does not matter here. `catch_warnings` does not work with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# The formats that Pillow may open. Not EPS, which runs Ghostscript, and no format that nobody uses for photographs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNREAD = (".heic", ".heif", ".avif", ".jxl")  # photographs too, but Pillow alone cannot read them all
UNREAD_FORMAT = "its format is not read: convert it to JPEG or PNG"
BRANDS = {  # bytes 8..12 of an ISO base media file, ISO/IEC 14496-12 "ftyp" -> format
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
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
    """Read one image file at its own size.

    Of an animation, the first frame is read. The EXIF orientation is applied, colour profiles are not. 16-bit grey is
    rounded to 256 levels.

    Args:
        channels: 1 grey, 2 grey with alpha, 3 colour, 4 colour with alpha.
        background: grey level or [r, g, b] in 0..255, behind transparent pixels if `channels` has no alpha.
        smallest: least side in pixels.

    Returns: uint8 (channels, H, W) in 0..255.

    Raises UserError if the file is missing, is not an image, or is too small or too large.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        return to_tensor(decode(data, channels, background, smallest, name=str(path)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except BrokenFile as error:
        raise UserError(f"{path} cannot be used as an image: {error}") from error


def decode(data: bytes, channels: int, background=255, smallest: int = SMALLEST_SIDE, *, name: str = "") -> Image.Image:
    """Decode the content of an image file to a Pillow image of mode L, LA, RGB or RGBA, at its own size.

    The size in the header is checked before any pixel is decoded. `name` is the file's, for the message about a wrong
    ending; for the other arguments see `read_image`. Raises BrokenFile if the image cannot be used, for any reason.
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
        raise BrokenFile(str(error).partition(",")[0]) from error
    except Exception as error:  # decoders raise anything at all on damaged data
        raise BrokenFile(_unread_format(data, name) or _reason(error)) from error


def convert_command(channels: int) -> str:
    """Return a command that converts the image file IN to grey or RGB, for messages."""
    mode = "L" if channels == 1 else "RGB"
    return f"python -c \"from PIL import Image; Image.open('IN').convert('{mode}').save('OUT.png')\""


def in_mode(image: Image.Image, channels: int, background=255) -> Image.Image:
    """Convert a Pillow image of any mode to L, LA, RGB or RGBA. Alpha is flattened if `channels` has no alpha."""
    image = _eight_bits(image)
    mode = MODES[channels]
    if image.has_transparency_data or "A" in image.mode or "a" in image.mode:
        image = image.convert("RGBA")
        if channels in (1, 3):
            behind = Image.new("RGBA", image.size, _colour(background))
            image = Image.alpha_composite(behind, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image of mode L, LA, RGB or RGBA to uint8 (C, H, W) in 0..255."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey images of 16 bits, 32-bit integers and floats to mode L. Pillow would clip them at 255."""
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
    """Apply the EXIF orientation. Damaged EXIF data are ignored."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _colour(background) -> tuple[int, int, int, int]:
    red, green, blue = (background,) * 3 if isinstance(background, int) else background
    return (red, green, blue, 255)


def _unread_format(data: bytes, name: str) -> str | None:
    """Recognise HEIC, AVIF and JPEG XL by their first bytes: phones and web pages use them under other endings."""
    kind = BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        kind = "JPEG XL"
    if kind is None:
        return None
    ending = Path(name).suffix.lower()
    disguise = f" under the name {ending}" if ending in ENDINGS else ""
    return f"it is a {kind} picture{disguise}: convert it to JPEG or PNG".replace("a AVIF", "an AVIF")


def _reason(error: Exception) -> str:
    if "cannot identify image file" in str(error):
        return "it is not an image"
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


RESAMPLING = Image.Resampling.BICUBIC  # Pillow's is antialiased: the kernel widens as the image shrinks


def resize_to(image: Image.Image, size: tuple[int, int], how: str = "crop", background=255) -> Image.Image:
    """Resize an image to exactly `size`, and keep its aspect ratio. An image of that size is returned as it is.

    Args:
        size: (height, width) in pixels.
        how: "crop" takes the largest centred window of the aspect ratio of `size`; "pad" takes the whole image and
            centres it on the background.
        background: grey level or [r, g, b] in 0..255. The padding of an image with alpha is transparent.
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
    """Return left, top, right and bottom of the largest centred window of the aspect ratio height : width.

    Rounding must not move it over the image's edge, not even by 1e-15: Pillow refuses such a window.
    """
    scale = min(image.width / width, image.height / height)
    left, top = max(0, image.width - width * scale) / 2, max(0, image.height - height * scale) / 2
    return (left, top, image.width - left, image.height - top)


def _fill(mode: str, background) -> tuple[int, ...]:
    """Return the background in the image's mode. With alpha, it is transparent."""
    colour = _colour(background)[:3]
    levels = (grey(colour),) if mode.startswith("L") else colour
    return (*levels, 0) if mode.endswith("A") else levels
