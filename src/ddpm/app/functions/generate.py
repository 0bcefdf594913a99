"""Drawing images live, and saying how to draw the same ones without the page."""

import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.app.functions.bounds import MOST_SEED, bounded
from ddpm.app.functions.live import live
from ddpm.model import Model
from ddpm.pixels import to_uint8
from ddpm.samplers import DEFAULT_SAMPLER, Callback, Step, find_sampler
from ddpm.tracing import recording
from ddpm.viewing.drawing import picture
from ddpm.viewing.frames import Frame, Recorder, as_grid
from ddpm.viewing.pictures import save_grid
from ddpm.viewing.trajectory import Trajectory

MOST_IMAGES, MOST_STEPS = 64, 1000
GIF_FRAMES = 40
EVERY_CLASS = "every class in turn"


@dataclass(frozen=True)
class Settings:
    """What the Generate tab asks for; `label` is a class name or `EVERY_CLASS`."""

    label: str = EVERY_CLASS
    sampler: str = DEFAULT_SAMPLER
    steps: int = 20
    guidance: float = 1.0
    seed: int = 0
    number: int = 16

    def options(self, model: Model) -> dict[str, Any]:
        """As `Model.sample` takes them, within the page's bounds; UserError otherwise.

        One forward pass holds all images and no padding: a page is for few of them, and soon.
        """
        number = bounded("the number of images", self.number, 1, most_images(model))
        options: dict[str, Any] = {
            "num": number,
            "sampler": self.sampler,
            "steps": bounded("the number of steps", self.steps, 1, most_steps(model)),
            "seed": bounded("the seed", self.seed, 0, MOST_SEED),
        }
        if self.label != EVERY_CLASS:
            options["labels"] = self.label
        if self.guidance != 1:
            options["guidance"] = float(self.guidance)
        if number != model.default_batch_size:
            options["batch_size"] = number
        return options


@dataclass(frozen=True)
class Drawn:
    """The images, float (N, C, H, W) in [-1, 1], and how they came about."""

    images: Tensor
    trajectory: Trajectory

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write samples.png (a grid), samples.gif (the way there) and samples.npz (`arr_0`, uint8, N,H,W,C)."""
        grid, gif, array = (folder / f"samples.{ending}" for ending in ("png", "gif", "npz"))
        save_grid(self.images, grid)
        self.trajectory.save(gif)
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=to_uint8(self.images).permute(0, 2, 3, 1).numpy())
        array.write_bytes(buffer.getvalue())
        return grid, gif, array


def most_steps(model: Model) -> int:
    """The page's longest run."""
    return min(MOST_STEPS, model.process.schedule.timesteps)


def most_images(model: Model) -> int:
    """The page's largest grid: fewer where images are large."""
    return min(MOST_IMAGES, 4 * model.default_batch_size)


def generate(model: Model, settings: Settings) -> Iterator[Step | Drawn]:
    """Draw images: yields steps as they are done, and at last what was drawn. Closing it stops the sampler."""
    options = settings.options(model)
    chosen, schedule = find_sampler(options["sampler"]), model.process.schedule
    timesteps = chosen.timesteps(schedule, options["steps"])
    recorder = Recorder(timesteps, schedule.log_snr, "reverse", frames=GIF_FRAMES)
    record = recording(recorder)

    def draw(callback: Callback) -> Drawn:
        def seen(step: Step) -> None:
            record(step)
            callback(step)

        images = model.sample(**options, callback=seen)
        return Drawn(images, Trajectory(recorder.frames, images))

    return live(draw)


def step_picture(model: Model, step: Step) -> Image.Image:
    """x_t beside the predicted x_0, with t, SNR and how far it is, as in the GIF."""
    log_snr = model.process.schedule.log_snr(step.t)
    frame = Frame("reverse", step.t, log_snr, as_grid(step.x_t), as_grid(step.x_0))
    return picture(frame, progress=(step.index + 1) / step.steps)


def as_command(name: str, options: dict[str, Any]) -> str:
    """The command that writes the same grid."""
    flags = [f"--{flag.replace('_', '-')} {shlex.quote(str(value))}" for flag, value in options.items()]
    return " \\\n    ".join([f"ddpm sample {shlex.quote(name)}", *_lines(flags), "--out samples.png"])


def as_python(name: str, options: dict[str, Any]) -> str:
    """The program that writes the same grid."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return (
        f"import ddpm\n\nmodel = ddpm.load({name!r})\nimages = model.sample({arguments})\n"
        'ddpm.save_grid(images, "samples.png")'
    )


def _lines(flags: list[str], most: int = 60) -> list[str]:
    """Flags gathered into lines that a narrow page shows without scrolling."""
    lines = [flags[0]]
    for flag in flags[1:]:
        if len(lines[-1]) + len(flag) < most:
            lines[-1] += f" {flag}"
        else:
            lines.append(flag)
    return lines
