"""Frames of a trajectory: which steps to keep, how to render them, and how to write a GIF, an MP4 or a strip.

The frames are chosen before the run and kept as uint8, so memory does not grow with the number of steps.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm.common.errors import UserError, install, require
from ddpm.common.files import atomic_path, check_output
from ddpm.common.pixels import grey, make_grid, origin_text, png_text, to_pillow

FrameSpacing = Literal["uniform", "log_snr"]
Phase = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Frame:
    """One moment: x_t with x_0 (the given image in the forward process, the predicted one in the reverse process).

    `x_t` and `x_0` are uint8 grids (C, H, W) of all images; `x_0` is None if there is nothing to show. t = -1 is the
    data; its `log_snr` is +inf.
    """

    phase: Phase
    t: float
    log_snr: float
    x_t: Tensor
    x_0: Tensor | None


class Recorder:
    """Receive every state of a run and keep the chosen ones as frames.

    Args:
        timesteps: of the states, in the order they will come: S+1 for a run of S steps.
        log_snr: log-SNR as a function of the timestep.
        phase: direction of the run.
        frames: most frames to keep; the first and the last state are always among them.
        spacing: "uniform" over the states, or over their log-SNR.
        columns: of the grid, if there is more than one image.
    """

    def __init__(
        self,
        timesteps: Sequence[float],
        log_snr: Callable[[float], float],
        phase: Phase,
        *,
        frames: int,
        spacing: FrameSpacing = "uniform",
        columns: int | None = None,
    ):
        self.frames: list[Frame] = []
        self.phase, self.timesteps, self.columns = phase, list(timesteps), columns
        self.log_snrs = [log_snr(t) for t in timesteps]
        self.chosen = frozenset(choose_frames(self.log_snrs, frames, spacing))

    def see(self, state: int, x_t: Tensor, x_0: Tensor | None = None) -> None:
        """Receive state number `state`: x_t (N, C, H, W), and the known or predicted x_0."""
        if state in self.chosen:
            beside = None if x_0 is None else as_grid(x_0, self.columns)
            moment = (self.phase, self.timesteps[state], self.log_snrs[state])
            self.frames.append(Frame(*moment, as_grid(x_t, self.columns), beside))


def as_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Arrange images (N, C, H, W) in [-1, 1] as one uint8 image; a single one has no border."""
    return make_grid(images, columns, gap=0 if len(images) == 1 else 2)


def choose_frames(log_snrs: Sequence[float], frames: int, spacing: FrameSpacing = "uniform") -> list[int]:
    """Return the indices of the states to keep: at most `frames` (at least 2), including the first and the last."""
    last = len(log_snrs) - 1
    if frames < 2:
        raise UserError(f"{frames} frames are too few: give at least 2, for the first and the last state")
    if spacing == "uniform":
        return sorted({round(place) for place in np.linspace(0, last, min(frames, last + 1))})
    if spacing != "log_snr":
        raise UserError(f"no frame spacing named {spacing!r}; there are {', '.join(get_args(FrameSpacing))}")
    finite = [index for index, value in enumerate(log_snrs) if math.isfinite(value)]
    if not finite:
        return sorted({0, last})
    starts, stops = int(finite[0] == 0), int(finite[-1] == last)  # infinite ends are frames of their own
    values = np.array([log_snrs[index] for index in finite])
    count = frames - 2 + starts + stops
    inner = np.linspace(values[0], values[-1], count)[starts : count - stops]
    return sorted({finite[int(np.abs(values - target).argmin())] for target in inner} | {0, last})


PANEL, STRIP_CELL = 256, 112  # small images are enlarged, by whole numbers, to about this side
LARGEST_PANEL = 640
MARGIN = 12
INK, GREY, BLUE = (20, 20, 20), (205, 205, 205), (0, 114, 178)  # blue of the Okabe-Ito palette
SUBSCRIPT = re.compile(r"_(\w)")


def picture(frame: Frame, progress: float) -> Image.Image:
    """Render one frame: x_t and x_0 side by side, t and SNR below, and a bar filled to `progress` (0 to 1)."""
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
    """Render all frames side by side: x_t above, x_0 below, t and SNR under each; names of the phases on top."""
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
    """Enlarge a grid by a whole number to about `side`, or shrink it to the largest size allowed."""
    image = to_pillow(grid)
    image = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    factor = max(1, round(side / max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((LARGEST_PANEL, LARGEST_PANEL), Image.Resampling.LANCZOS)
    return image


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int) -> None:
    """Write text; `_t` becomes a subscript, for which the font has no glyph."""
    x, y = place
    ink = _paint(draw.im.mode, INK)
    for number, piece in enumerate(SUBSCRIPT.split(text)):
        lowered = number % 2 == 1
        font = ImageFont.load_default(round(size * 0.72) if lowered else size)
        draw.text((x, y + (size * 0.5 if lowered else 0)), piece, fill=ink, font=font)
        x += font.getlength(piece)


def _paint(mode: str, colour: tuple[int, int, int]) -> int | tuple[int, int, int]:
    return colour if mode == "RGB" else grey(colour)


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


ENDINGS = (".gif", ".mp4", ".png")
SHORTEST_PAUSE = 20  # milliseconds; browsers show shorter GIF frames for 100 ms
LONGEST_PAUSE = 655  # seconds; a GIF stores hundredths of a second in 16 bits


@dataclass(frozen=True)
class Trajectory:
    """The frames in the order of display, and the final images, float (N, C, H, W) in [-1, 1]."""

    frames: list[Frame]
    images: Tensor

    def pictures(self) -> Iterator[Image.Image]:
        """Yield each frame with its caption, all of one size."""
        last = max(1, len(self.frames) - 1)
        for index, frame in enumerate(self.frames):
            yield picture(frame, progress=index / last)

    def save(self, path: str | Path, *, fps: float = 15.0, hold: float = 2.0, overwrite: bool = False) -> Path:
        """Write a .gif, an .mp4, or all frames in one .png.

        Args:
            fps: frames per second (not for a .png).
            hold: seconds to show the last frame.

        Raises UserError if the name has another ending or exists, or ffmpeg is missing; RunStopped if the disk is full.
        """
        path = check_animation(path, fps=fps, hold=hold, overwrite=overwrite)
        with atomic_path(path) as beside:
            match path.suffix.lower():
                case ".png":
                    strip(self.frames).save(beside, pnginfo=png_text())
                case ".gif":
                    _save_gif(self.pictures(), beside, fps, hold)
                case ".mp4":
                    _save_mp4(self.pictures(), beside, fps, hold)
        return path


def check_animation(path: str | Path, *, fps: float = 15.0, hold: float = 2.0, overwrite: bool = False) -> Path:
    """Check, before any sampling, that `path` can be written; an .mp4 needs the `video` extra."""
    path = check_output(path, ENDINGS, overwrite=overwrite)
    if not 0.01 <= fps <= 100:
        raise UserError(f"cannot show {fps:g} frames a second; choose 0.01 to 100")
    if not 0 <= hold <= LONGEST_PAUSE:
        raise UserError(f"cannot hold the last frame for {hold:g} seconds; choose 0 to {LONGEST_PAUSE}")
    if path.suffix.lower() == ".mp4":
        try:
            require("imageio", "video")
            require("imageio_ffmpeg", "video").get_ffmpeg_exe()
        except (UserError, RuntimeError) as error:
            raise UserError(f"an .mp4 needs ffmpeg: {install('video')}; a .gif does without") from error
    return path


def _save_gif(frames: Iterator[Image.Image], path: Path, fps: float, hold: float) -> None:
    paletted = [frame if frame.mode == "L" else frame.quantize(256) for frame in frames]  # the 256 that fit best
    pause = max(SHORTEST_PAUSE, round(1000 / fps))
    durations = [pause] * (len(paletted) - 1) + [max(pause, round(1000 * hold))]
    origin = {"comment": origin_text()} if origin_text() else {}
    paletted[0].save(path, save_all=True, append_images=paletted[1:], duration=durations, loop=0, **origin)


def _save_mp4(frames: Iterator[Image.Image], path: Path, fps: float, hold: float) -> None:
    imageio = require("imageio.v2", "video")
    # every player knows H.264 with 4:2:0 colour, which needs even sides
    settings = {"codec": "libx264", "quality": 8, "pixelformat": "yuv420p", "macro_block_size": 1}
    with imageio.get_writer(path, fps=fps, **settings) as writer:
        for frame in frames:
            array = _even(np.asarray(frame.convert("RGB")))
            writer.append_data(array)
        for _ in range(round(hold * fps)):
            writer.append_data(array)


def _even(array: np.ndarray) -> np.ndarray:
    height, width, _ = array.shape
    return np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
