"""What a file may cost: bounds checked against headers before anything is allocated or decoded."""

from ddpm.errors import UserError

SMALLEST_SIDE = 8  # pixels; a smaller image has nothing to teach a U-Net
MOST_PIXELS = 2**26  # of one image: 8192 x 8192
MOST_FILE_BYTES = 2**28  # of one encoded image
MOST_MEMORY_BYTES = 2**32  # a decoded set up to this size stays in memory, a larger one is decoded as it is used
MOST_DEFLATE_RATIO = 1100  # deflate cannot pack tighter than about 1032 to 1


class BrokenFile(Exception):
    """One file that cannot be used; the message says why. It is skipped, counted and named."""


def check_size(height: int, width: int) -> None:
    """Refuse an image that is too small to be of use or too large to be decoded safely."""
    if min(height, width) < SMALLEST_SIDE:
        raise BrokenFile(f"{width}x{height} is smaller than {SMALLEST_SIDE} pixels")
    if height * width > MOST_PIXELS:
        raise BrokenFile(f"{width}x{height} is more than {MOST_PIXELS:,} pixels")


def check_array(path, shape: tuple[int, ...], stored_bytes: int) -> int:
    """The bytes of a uint8 array that a header announces, refused where the file cannot possibly hold them."""
    size = 1
    for extent in shape:
        size *= int(extent)
    if size <= 0 or size > stored_bytes * MOST_DEFLATE_RATIO:
        raise UserError(f"{path}: its header announces {'x'.join(map(str, shape))} bytes, which the file does not hold")
    return size
