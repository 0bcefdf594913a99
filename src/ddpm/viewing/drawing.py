"""Frames as captioned pictures, one at a time or as a strip; the letters are Pillow's own, so no font is looked for."""

import math
import re
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm.viewing.frames import Frame
from ddpm.viewing.pictures import to_pillow

PANEL, STRIP_CELL = 256, 112  # small images are enlarged, by whole numbers, to about this side
LARGEST_PANEL = 640
MARGIN = 12
INK, GREY, BLUE = (20, 20, 20), (205, 205, 205), (0, 114, 178)  # blue of the Okabe-Ito palette
SUBSCRIPT = re.compile(r"_(\w)")


def picture(frame: Frame, progress: float) -> Image.Image:
    """One frame: x_t, x_0 beside it, t and SNR under them, and a line of which `progress` (0 to 1) is filled."""
    panels = [(title, _panel(grid, PANEL)) for title, grid in _titled(frame)]
    width = sum(panel.width for _, panel in panels) + MARGIN * (len(panels) + 1)
    bottom = 40 + panels[0][1].height
    canvas, draw = _canvas(panels[0][1].mode, width, bottom + 54)
    left = MARGIN
    for title, panel in panels:
        _text(draw, (left, 8), title, 20)
        canvas.paste(panel, (left, 40))
        left += panel.width + MARGIN
    _text(draw, (MARGIN, bottom + 6), _time(frame), 18)
    _text(draw, (MARGIN + 110, bottom + 6), f"SNR {_snr(frame)}", 18)
    end = MARGIN + round((width - 2 * MARGIN) * progress)
    draw.rectangle((MARGIN, bottom + 38, width - MARGIN, bottom + 42), fill=_paint(canvas.mode, GREY))
    draw.rectangle((MARGIN, bottom + 38, end, bottom + 42), fill=_paint(canvas.mode, BLUE))
    return canvas


def strip(frames: Sequence[Frame]) -> Image.Image:
    """All frames side by side: x_t above, x_0 below, t and SNR under each, and the phase above where there are two."""
    columns = [[(title, _panel(grid, STRIP_CELL)) for title, grid in _titled(frame)] for frame in frames]
    titles = [title for title, _ in columns[-1]]
    if len({frame.phase for frame in frames}) == 2:
        titles = ["x_t", "x_0"]
    width, height = columns[0][0][1].size
    across, down = max(width, 96) + 8, height + 8
    top, left = (32 if titles[-1] == "x_0" else MARGIN), (120 if titles[-1].startswith("predicted") else 40)
    canvas, draw = _canvas(
        columns[0][0][1].mode, left + across * len(columns) + MARGIN, top + down * len(titles) + 44 + MARGIN
    )
    for row, title in enumerate(titles):
        _text(draw, (8, top + row * down + height // 2 - 12), title, 15)
    for number, (frame, column) in enumerate(zip(frames, columns, strict=True)):
        x, below = left + number * across, top + down * len(titles)
        if titles[-1] == "x_0" and (number == 0 or frame.phase != frames[number - 1].phase):
            said = "forward: x_0 is the image" if frame.phase == "forward" else "reverse: x_0 is predicted"
            _text(draw, (x, 8), said, 15)
        for row, (_, panel) in enumerate(column):
            canvas.paste(panel, (x, top + row * down))
        _text(draw, (x, below), _time(frame), 14)
        _text(draw, (x, below + 20), f"SNR {_snr(frame)}", 14)
    return canvas


def _titled(frame: Frame) -> Iterator[tuple[str, Tensor]]:
    yield "x_t", frame.x_t
    if frame.x_0 is not None:
        yield ("x_0" if frame.phase == "forward" else "predicted x_0"), frame.x_0


def _canvas(mode: str, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new(mode, (width, height), "white")
    return canvas, ImageDraw.Draw(canvas)


def _panel(grid: Tensor, side: int) -> Image.Image:
    """A grid as a picture, enlarged by a whole number towards `side`, or shrunk to the largest allowed."""
    image = to_pillow(grid)
    image = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    factor = max(1, round(side / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((LARGEST_PANEL, LARGEST_PANEL), Image.Resampling.LANCZOS)
    return image


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int) -> None:
    """Text in which `_t` is a subscript: the font has no glyph for one."""
    x, y = place
    ink = _paint(draw.im.mode, INK)
    for number, piece in enumerate(SUBSCRIPT.split(text)):
        lowered = number % 2 == 1
        font = ImageFont.load_default(round(size * 0.72) if lowered else size)
        draw.text((x, y + (size * 0.5 if lowered else 0)), piece, fill=ink, font=font)
        x += font.getlength(piece)


def _paint(mode: str, colour: tuple[int, int, int]) -> int | tuple[int, int, int]:
    red, green, blue = colour
    return colour if mode == "RGB" else round(0.299 * red + 0.587 * green + 0.114 * blue)


def _time(frame: Frame) -> str:
    if frame.t < 0:
        return "the data"
    return f"t = {frame.t:.0f}" if frame.t == int(frame.t) else f"t = {frame.t:.1f}"


def _snr(frame: Frame) -> str:
    if frame.log_snr == math.inf:
        return "infinite"
    snr = math.exp(frame.log_snr)
    if 0 < snr < 1e-3:
        power = math.floor(math.log10(snr))
        return f"{snr / 10**power:.1f}e{power}"
    return f"{snr:.0f}" if snr >= 10 or snr == 0 else f"{snr:.2g}"
