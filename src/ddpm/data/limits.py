"""What a file may cost: bounds checked against headers before anything is allocated or decoded."""

import math
import os
import unicodedata
from pathlib import Path

from ddpm.errors import UserError

SMALLEST_SIDE = 8  # pixels; a smaller image has nothing to teach a U-Net
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
