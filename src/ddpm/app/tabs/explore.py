"""The Explore tab: noise schedules, and the forward process of an upload."""

from typing import Any

import gradio as gr

from ddpm.app.components import Outbox, told, upload
from ddpm.app.functions import explore as behind
from ddpm.app.functions.drawing import as_svg
from ddpm.model import Model

FIRST = [behind.OWN, "linear", "cosine"]


def tab(model: Model) -> None:
    """Lay the tab out and connect it; endpoints /schedules and /forward."""
    names = [behind.OWN, *behind.SCHEDULES]

    @told
    def schedules(names, timesteps, beta_start, beta_end, zero_terminal_snr):
        asked = behind.Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        drawn = behind.schedule_figure(model, names, asked)
        return as_svg(drawn, f"β, ᾱ and SNR over t of the schedules: {', '.join(names)}")

    @told
    def forward(image, name, timesteps, beta_start, beta_end, zero_terminal_snr):
        asked = behind.Range(timesteps, beta_start, beta_end, zero_terminal_snr)
        with Outbox() as out:
            strip, path = behind.forward(model, image, name, asked, out.folder)
            yield out.put(strip), str(path)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.CheckboxGroup(names, value=FIRST, label="Schedules")
            timesteps: Any = gr.Slider(2, behind.MOST_TIMESTEPS, 1000, step=1, label="T")
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
            name = gr.Dropdown(names, value=behind.OWN, label="Schedule")
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
        whole = timesteps is not None and 2 <= timesteps <= behind.MOST_TIMESTEPS
        return schedules(names, timesteps, *others) if whole else gr.skip()

    numbers = [timesteps, beta_start, beta_end, zero]
    shown, quiet = [chosen, *numbers], {"concurrency_id": "figures", "show_progress": "hidden"}
    # not the change of a β: that comes at every keystroke, and half a number is refused
    done = [event for number in (beta_start, beta_end) for event in (number.submit, number.blur)]
    events = [chosen.change, zero.change, timesteps.release, *done]
    gr.on(events, schedules, shown, figure, api_name="schedules", trigger_mode="always_last", **quiet)
    timesteps.change(follow, shown, figure, api_visibility="private", trigger_mode="always_last", **quiet)
    start.click(forward, [image, name, *numbers], [strip, moving], api_name="forward", concurrency_id="figures")
