"""A trajectory to watch: written as a moving picture (.gif, .mp4) or a strip (.png)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.errors import UserError, install, require
from ddpm.viewing.drawing import picture, strip
from ddpm.viewing.files import check_target, written_beside
from ddpm.viewing.frames import Frame

ENDINGS = (".gif", ".mp4", ".png")
SHORTEST_PAUSE = 20  # milliseconds; below that browsers show a GIF's frame for 100
LONGEST_PAUSE = 655  # seconds; a GIF counts hundredths of them in 16 bits


@dataclass(frozen=True)
class Trajectory:
    """The frames in the order they are to be seen, and the images that came out, float (N, C, H, W) in [-1, 1]."""

    frames: list[Frame]
    images: Tensor

    def pictures(self) -> Iterator[Image.Image]:
        """Each frame as a captioned picture, all of one size."""
        last = max(1, len(self.frames) - 1)
        for index, frame in enumerate(self.frames):
            yield picture(frame, progress=index / last)

    def save(self, path: str | Path, *, fps: float = 15.0, hold: float = 2.0, overwrite: bool = False) -> Path:
        """Write a .gif, an .mp4, or all frames in one .png.

        Args:
            fps: frames a second (not for a .png).
            hold: seconds for which the last frame stands still.

        Raises UserError where the name has another ending or is taken, or ffmpeg is missing; RunStopped on a full disk.
        """
        path = check_animation(path, fps=fps, hold=hold, overwrite=overwrite)
        with written_beside(path) as beside:
            match path.suffix.lower():
                case ".png":
                    strip(self.frames).save(beside)
                case ".gif":
                    _save_gif(self.pictures(), beside, fps, hold)
                case ".mp4":
                    _save_mp4(self.pictures(), beside, fps, hold)
        return path


def check_animation(path: str | Path, *, fps: float = 15.0, hold: float = 2.0, overwrite: bool = False) -> Path:
    """See, before any sampling, that `path` can be written; an .mp4 needs the `video` extra."""
    path = check_target(path, ENDINGS, overwrite=overwrite)
    if not 0.01 <= fps <= 100:
        raise UserError(f"{fps:g} frames a second asked for; choose 0.01 to 100")
    if not 0 <= hold <= LONGEST_PAUSE:
        raise UserError(f"the last frame cannot stand still for {hold:g} seconds; choose 0 to {LONGEST_PAUSE}")
    if path.suffix.lower() == ".mp4":
        try:
            require("imageio", "video")
            require("imageio_ffmpeg", "video").get_ffmpeg_exe()
        except (UserError, RuntimeError) as error:
            raise UserError(f"an .mp4 needs ffmpeg: {install('video')}; a .gif does without") from error
    return path


def _save_gif(frames: Iterator[Image.Image], path: Path, fps: float, hold: float) -> None:
    paletted = [_paletted(frame) for frame in frames]
    pause = max(SHORTEST_PAUSE, round(1000 / fps))
    durations = [pause] * (len(paletted) - 1) + [max(pause, round(1000 * hold))]
    paletted[0].save(path, save_all=True, append_images=paletted[1:], duration=durations, loop=0)


def _paletted(frame: Image.Image) -> Image.Image:
    """A GIF has 256 colours a frame: all the greys there are, or the 256 that fit the frame best."""
    return frame if frame.mode == "L" else frame.quantize(256)


def _save_mp4(frames: Iterator[Image.Image], path: Path, fps: float, hold: float) -> None:
    imageio = require("imageio.v2", "video")
    # H.264 with 4:2:0 colour, which every player knows, wants even sides: hence _even
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
