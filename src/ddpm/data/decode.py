"""From the bytes of an image file to uint8 (C, H, W): safely, and right for every kind of pixel."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.data.limits import MOST_FILE_BYTES, SMALLEST_SIDE, BrokenFile, check_size
from ddpm.errors import UserError

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
    `ddpm.data.limits` allow.
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
