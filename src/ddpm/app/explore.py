"""The Explore tab: noise schedules, and the forward process of a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import numpy as np
from torch import Tensor

from ddpm.app.components import TempImages, bounded, choice, film, picture_pad, program_file, shots, slider
from ddpm.app.figures import Curve, chart, figure
from ddpm.app.outcome import QUIET, Outcome, running
from ddpm.app.press import buttons, connect, show_user_errors
from ddpm.app.uploads import from_pad, read_fitted
from ddpm.common.errors import UserError
from ddpm.diffusion.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.model import Model
from ddpm.plotting.animation import Frame
from ddpm.plotting.trace import trace_forward

SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
OWN = "this model's"
NAMES = (OWN, *SCHEDULES)
ALPHA_BAR = "ᾱ"
MEANINGS = {"β": "noise added at step t", ALPHA_BAR: "share of the picture left", "SNR": "signal to noise"}
MOST_TIMESTEPS, MOST_FRAMES = 4000, 36


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
            raise UserError("the last β must be larger than the first, both between 0 and 1")
        if name not in SCHEDULES:
            raise UserError(f"no schedule named {name!r}; there are {', '.join(NAMES)}")
        betas = make_betas(name, timesteps, self.beta_start, self.beta_end)
        return NoiseSchedule(rescale_zero_terminal_snr(betas) if self.zero_terminal_snr else betas)


def schedule_curves(model: Model, names: list[str], asked: Range) -> dict[str, list[Curve]]:
    """Return β_t, ᾱ_t and the SNR of the chosen schedules."""
    if not names:
        raise UserError("no schedule is chosen: choose at least one")
    found: dict[str, list[Curve]] = {"β": [], ALPHA_BAR: [], "SNR": []}
    for name in names:
        schedule, place = asked.schedule(name, model), NAMES.index(name)
        t = np.arange(len(schedule))
        with np.errstate(over="ignore"):
            snr = np.exp([schedule.log_snr(float(step)) for step in t])
        for values, curve in zip(found.values(), (schedule.betas, schedule.alphas_cumprod, snr), strict=True):
            values.append(Curve(name, t, np.asarray(curve, dtype=np.float64), place))
    return found


def schedule_figure(model: Model, names: list[str], asked: Range) -> str:
    """Plot β_t, ᾱ_t and the SNR of the chosen schedules, as HTML."""
    found = schedule_curves(model, names, asked)
    charts = [
        chart(f"{title}: {MEANINGS[title]}", "t", curves, log=title != ALPHA_BAR) for title, curves in found.items()
    ]
    return figure(charts, found["SNR"], f"β, ᾱ and SNR over t of the schedules: {', '.join(names)}")


def noise_upload(model: Model, pixels: Tensor, name: str, asked: Range, path: Path) -> list[Frame]:
    """Add noise to an image (C, H, W) in [-1, 1]: return frames of the forward process, and write them as a GIF."""
    trajectory = trace_forward(asked.schedule(name, model), pixels, frames=MOST_FRAMES)
    trajectory.save(path)
    return trajectory.frames


FIRST = [OWN, "linear", "cosine"]


def tab(model: Model) -> list[Any]:
    """Build the tab and connect its events; endpoints /schedules and /forward. Return its settings."""

    def schedules(names, timesteps, beta_start, beta_end, zero_terminal_snr):
        return schedule_figure(model, names, Range(timesteps, beta_start, beta_end, zero_terminal_snr))

    def forward(image, pad, name, timesteps, beta_start, beta_end, zero_terminal_snr):
        yield running("Starting …"), "", None
        asked = Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        pixels = read_fitted(from_pad(pad, image), model.image_shape, preprocessing=model.preprocessing)
        with TempImages() as out:
            path = out.folder / "forward.gif"
            frames = noise_upload(model, pixels, name, asked, path)
            yield "Done. Move the slider from the picture to noise.", film(shots(frames)), str(path)

    with gr.Column(elem_classes="controls"):
        chosen = gr.CheckboxGroup(list(NAMES), value=FIRST, label="Schedules")
        with gr.Row(elem_classes="fields"):
            timesteps: Any = slider(2, MOST_TIMESTEPS, 1000, step=1, label="T", info="Steps to noise.", min_width=200)
            # checked in `Range.schedule`: the field may be empty or half typed
            timesteps.preprocess = lambda value: value
            beta_start = gr.Number(
                1e-4, label="First β", info="Noise of step 1.", minimum=1e-6, maximum=0.5, step=1e-4, min_width=120
            )
            beta_end = gr.Number(
                0.02, label="Last β", info="Noise of step T.", minimum=1e-5, maximum=0.999, step=1e-3, min_width=120
            )
            zero = gr.Checkbox(False, label="End in pure noise (zero terminal SNR)", min_width=200)
    drawn = gr.HTML(schedules(FIRST, 1000, 1e-4, 0.02, False), js_on_load=None)
    gr.Markdown("## From a picture to noise")
    with gr.Row(elem_classes="room"):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            pad, image = picture_pad(model, "forward", "Picture to noise", "forward"), program_file("Image")
            name = choice(NAMES, OWN, "Schedule")
            pressed = buttons("Noise it")
        with gr.Column(scale=1, min_width=300):
            outcome = Outcome("forward", "Choose a schedule, then press Noise it.", ["Animation, GIF"], moves=False)

    def follow(names, timesteps, *others):
        """Follow the slider of T, also by arrow keys; ignore a number that is only half typed."""
        whole = timesteps is not None and 2 <= timesteps <= MOST_TIMESTEPS
        return schedules(names, timesteps, *others) if whole else gr.skip()

    numbers = [timesteps, beta_start, beta_end, zero]
    shown, quiet = [chosen, *numbers], {"concurrency_id": "figures", "show_progress": "hidden"}
    # not `change` for β: it fires at every keystroke, and a half-typed number would be refused
    done = [event for number in (beta_start, beta_end) for event in (number.submit, number.blur)]
    events = [chosen.change, zero.change, timesteps.release, *done]
    refused = gr.on(
        events, show_user_errors(schedules), shown, drawn, api_name="schedules", trigger_mode="always_last", **quiet
    )
    # an old figure would pass for that of the new choice
    refused.failure(None, None, drawn, js="() => ddpm.refused()", **QUIET)
    timesteps.change(
        show_user_errors(follow), shown, drawn, api_visibility="private", trigger_mode="always_last", **quiet
    )
    connect(pressed, forward, [image, pad, name, *numbers], outcome)
    return [*shown, name]
