"""Bringing images to one size with their aspect kept: by cropping what stands over, or by padding."""

from typing import NamedTuple

from PIL import Image

RESAMPLING = Image.Resampling.BICUBIC  # Pillow's is antialiased: the kernel widens as the image shrinks


class Framing(NamedTuple):
    """How a set's images came to one size and lost their alpha: the fields of these names in the `data` section."""

    fit: str = "crop"
    background: int | tuple[int, int, int] = 255


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
