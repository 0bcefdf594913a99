"""The Explore tab: noise schedules, and the forward process of an upload."""

import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import gradio as gr
import numpy as np
from PIL import Image

from ddpm.app.components import Outbox, bounded, read_upload, told, upload
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
    """A matplotlib figure as an HTML element, described for those who do not see it.

    It is in there twice, as it is and with its axes one below the other; the page's style shows the one that fits.
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
    """Lay a figure out for a phone, its letters as large as before."""
    column = drawn.add_gridspec(len(drawn.axes), 1)
    for number, ax in enumerate(drawn.axes):
        ax.set_subplotspec(column[number])
    for legend in drawn.legends:
        legend.set_ncols(3)
    drawn.set_size_inches(PHONE, ROW * len(drawn.axes) + 0.3 * len(drawn.legends))


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
            return model.diffusion.schedule
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


FIRST = [OWN, "linear", "cosine"]


def tab(model: Model) -> None:
    """Lay the tab out and connect it; endpoints /schedules and /forward."""
    names = [OWN, *SCHEDULES]

    @told
    def schedules(names, timesteps, beta_start, beta_end, zero_terminal_snr):
        asked = Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        drawn = schedule_figure(model, names, asked)
        return as_svg(drawn, f"β, ᾱ and SNR over t of the schedules: {', '.join(names)}")

    @told
    def forward(image, name, timesteps, beta_start, beta_end, zero_terminal_snr):
        asked = Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        with Outbox() as out:
            strip, path = forward(model, image, name, asked, out.folder)
            yield out.put(strip), str(path)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.CheckboxGroup(names, value=FIRST, label="Schedules")
            timesteps: Any = gr.Slider(2, MOST_TIMESTEPS, 1000, step=1, label="T")
            timesteps.preprocess = lambda value: value  # judged behind: its field may be empty, or half typed
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
        """T as it is moved, by the arrow keys too; what is only half typed in the field beside it is waited for."""
        whole = timesteps is not None and 2 <= timesteps <= MOST_TIMESTEPS
        return schedules(names, timesteps, *others) if whole else gr.skip()

    numbers = [timesteps, beta_start, beta_end, zero]
    shown, quiet = [chosen, *numbers], {"concurrency_id": "figures", "show_progress": "hidden"}
    # not the change of a β: that comes at every keystroke, and half a number is refused
    done = [event for number in (beta_start, beta_end) for event in (number.submit, number.blur)]
    events = [chosen.change, zero.change, timesteps.release, *done]
    gr.on(events, schedules, shown, figure, api_name="schedules", trigger_mode="always_last", **quiet)
    timesteps.change(follow, shown, figure, api_visibility="private", trigger_mode="always_last", **quiet)
    start.click(forward, [image, name, *numbers], [strip, moving], api_name="forward", concurrency_id="figures")
