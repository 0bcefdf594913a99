"""The Explore tab: noise schedules, and the forward process of an upload."""

import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import gradio as gr
import numpy as np
from PIL import Image

from ddpm.app.components import TempImages, bounded, read_upload, show_user_errors, upload
from ddpm.common.errors import UserError
from ddpm.common.pixels import to_float
from ddpm.data.images import to_tensor
from ddpm.diffusion.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.model import Model
from ddpm.plotting.animation import strip
from ddpm.plotting.plots import plot_schedules
from ddpm.plotting.trace import trace_forward

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHONE, ROW = 3.4, 2.2  # inches: a phone's width, and the height of one of the axes there


def as_svg(drawn: "Figure", description: str) -> str:
    """Convert a matplotlib figure to an HTML element with a description for screen readers.

    The element holds the figure twice: side by side and stacked for a phone. The style sheet shows the one that fits.
    """
    wide = _svg(drawn)
    _stack(drawn)
    return (
        f'<div role="img" aria-label="{escape(description)}">'
        f'<div class="wide">{wide}</div><div class="narrow">{_svg(drawn)}</div></div>'
    )


def _svg(drawn: "Figure") -> str:
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :]


def _stack(drawn: "Figure") -> None:
    """Stack the axes of a figure for a phone; the font size stays."""
    column = drawn.add_gridspec(len(drawn.axes), 1)
    for number, ax in enumerate(drawn.axes):
        ax.set_subplotspec(column[number])
    for legend in drawn.legends:
        legend.set_ncols(3)
    drawn.set_size_inches(PHONE, ROW * len(drawn.axes) + 0.3 * len(drawn.legends))


SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
OWN = "this model's"
MOST_TIMESTEPS = 4000
LARGEST_SIDE = 192  # pixels of the upload that is noised
MOST_FRAMES, STRIP_FRAMES, STRIP_COLUMNS = 36, 6, 3  # three side by side are readable on a phone


@dataclass(frozen=True)
class Range:
    """The parameters of the named schedules; None means that the field is empty."""

    timesteps: int = 1000
    beta_start: float | None = 1e-4
    beta_end: float | None = 0.02
    zero_terminal_snr: bool = False

    def schedule(self, name: str, model: Model) -> NoiseSchedule:
        """Return a named schedule, or the model's own, which ignores these parameters."""
        if name == OWN:
            return model.diffusion.schedule
        timesteps = bounded("T", self.timesteps, 2, MOST_TIMESTEPS)
        if self.beta_start is None or self.beta_end is None or not 0 < self.beta_start < self.beta_end < 1:
            raise UserError("the first β must be below the last: 0 < first β < last β < 1")
        if name not in SCHEDULES:
            raise UserError(f"no schedule named {name!r}; there are {', '.join((OWN, *SCHEDULES))}")
        betas = make_betas(name, timesteps, self.beta_start, self.beta_end)
        return NoiseSchedule(rescale_zero_terminal_snr(betas) if self.zero_terminal_snr else betas)


def schedule_figure(model: Model, names: list[str], asked: Range) -> "Figure":
    """Plot β_t, ᾱ_t and the SNR of the chosen schedules."""
    if not names:
        raise UserError("no schedule is chosen: choose at least one")
    return plot_schedules({name: asked.schedule(name, model).betas.tolist() for name in names})


def noise_upload(model: Model, source: str | None, name: str, asked: Range, folder: Path) -> tuple[Image.Image, Path]:
    """Add noise to an upload: return a strip of a few timesteps, and the path of an animation in `folder`."""
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
    """Stack pictures of one mode on a white sheet."""
    sheet = Image.new(rows[0].mode, (rows[0].width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * rows[0].height))
    return sheet


FIRST = [OWN, "linear", "cosine"]


def tab(model: Model) -> None:
    """Build the tab and connect its events; endpoints /schedules and /forward."""
    names = [OWN, *SCHEDULES]

    @show_user_errors
    def schedules(names, timesteps, beta_start, beta_end, zero_terminal_snr):
        asked = Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        drawn = schedule_figure(model, names, asked)
        return as_svg(drawn, f"β, ᾱ and SNR over t of the schedules: {', '.join(names)}")

    @show_user_errors
    def forward(image, name, timesteps, beta_start, beta_end, zero_terminal_snr):
        asked = Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        with TempImages() as out:
            picture, path = noise_upload(model, image, name, asked, out.folder)
            yield out.put(picture), str(path)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.CheckboxGroup(names, value=FIRST, label="Schedules")
            timesteps: Any = gr.Slider(2, MOST_TIMESTEPS, 1000, step=1, label="T")
            timesteps.preprocess = lambda value: (
                value
            )  # checked in `Range.schedule`: the field may be empty or half typed
            with gr.Row():
                beta_start = gr.Number(1e-4, label="First β", minimum=1e-6, maximum=0.5, step=1e-4, min_width=100)
                beta_end = gr.Number(0.02, label="Last β", minimum=1e-5, maximum=0.999, step=1e-3, min_width=100)
            zero = gr.Checkbox(False, label="Rescale to zero terminal SNR")
        with gr.Column(scale=3, min_width=300):
            figure = gr.HTML(schedules(FIRST, 1000, 1e-4, 0.02, False), elem_classes="figure")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = upload("Image")
            name = gr.Dropdown(names, value=OWN, label="Schedule")
            start = gr.Button("Noise it", variant="primary")
        with gr.Column(scale=3, min_width=300):
            strip = gr.Image(
                label="Forward process", format="png", interactive=False, buttons=["download"], elem_classes="lowered"
            )
            moving = gr.Image(
                label="In motion", format="gif", height=360, interactive=False, buttons=["download"],
                elem_classes="lowered",
            )  # fmt: skip

    def follow(names, timesteps, *others):
        """Follow the slider of T, also by arrow keys; ignore a number that is only half typed."""
        whole = timesteps is not None and 2 <= timesteps <= MOST_TIMESTEPS
        return schedules(names, timesteps, *others) if whole else gr.skip()

    numbers = [timesteps, beta_start, beta_end, zero]
    shown, quiet = [chosen, *numbers], {"concurrency_id": "figures", "show_progress": "hidden"}
    # not `change` for β: it fires at every keystroke, and a half-typed number would be refused
    done = [event for number in (beta_start, beta_end) for event in (number.submit, number.blur)]
    events = [chosen.change, zero.change, timesteps.release, *done]
    gr.on(events, schedules, shown, figure, api_name="schedules", trigger_mode="always_last", **quiet)
    timesteps.change(follow, shown, figure, api_visibility="private", trigger_mode="always_last", **quiet)
    start.click(forward, [image, name, *numbers], [strip, moving], api_name="forward", concurrency_id="figures")
