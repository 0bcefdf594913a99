"""Noise schedules, and what one of them does to an uploaded image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from PIL import Image

from ddpm.app.functions.bounds import bounded
from ddpm.app.functions.uploads import read_upload
from ddpm.data.decode import to_tensor
from ddpm.errors import UserError
from ddpm.model import Model
from ddpm.pixels import to_float
from ddpm.process.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.tracing import trace_forward
from ddpm.viewing.drawing import strip
from ddpm.viewing.plots import plot_schedules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
OWN = "this model's"
MOST_TIMESTEPS = 4000
LARGEST_SIDE = 192  # pixels of the upload that is noised
MOST_FRAMES, STRIP_FRAMES, STRIP_COLUMNS = 36, 6, 3  # three side by side can be read on a phone


@dataclass(frozen=True)
class Range:
    """What the named schedules are made with."""

    timesteps: int = 1000
    beta_start: float | None = 1e-4  # None: the field is empty
    beta_end: float | None = 0.02
    zero_terminal_snr: bool = False

    def schedule(self, name: str, model: Model) -> NoiseSchedule:
        """A named schedule, or the model's own, which keeps its own numbers."""
        if name == OWN:
            return model.process.schedule
        timesteps = bounded("T", self.timesteps, 2, MOST_TIMESTEPS)
        if self.beta_start is None or self.beta_end is None or not 0 < self.beta_start < self.beta_end < 1:
            raise UserError("β must rise: 0 < first β < last β < 1")
        if name not in SCHEDULES:
            raise UserError(f"no schedule named {name!r}; there are {', '.join((OWN, *SCHEDULES))}")
        betas = make_betas(name, timesteps, self.beta_start, self.beta_end)
        return NoiseSchedule(rescale_zero_terminal_snr(betas) if self.zero_terminal_snr else betas)


def schedule_figure(model: Model, names: list[str], asked: Range) -> "Figure":
    """β_t, ᾱ_t and SNR of the chosen schedules."""
    if not names:
        raise UserError("no schedule is chosen: choose at least one")
    return plot_schedules({name: asked.schedule(name, model).betas.tolist() for name in names})


def forward(model: Model, source: str | None, name: str, asked: Range, folder: Path) -> tuple[Image.Image, Path]:
    """The forward process of an upload: a strip of a few moments, and forward.gif of more of them in `folder`."""
    image = read_upload(source, 3)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    pixels = to_float(to_tensor(image))
    schedule = asked.schedule(name, model)
    trajectory = trace_forward(schedule, pixels, frames=MOST_FRAMES)
    last = len(trajectory.frames) - 1
    few = [trajectory.frames[index] for index in sorted({round(place) for place in np.linspace(0, last, STRIP_FRAMES)})]
    rows = [strip(few[start : start + STRIP_COLUMNS]) for start in range(0, len(few), STRIP_COLUMNS)]
    return stacked(rows), trajectory.save(folder / "forward.gif")


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Pictures of one mode, one below the other on white."""
    sheet = Image.new(rows[0].mode, (rows[0].width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * rows[0].height))
    return sheet
