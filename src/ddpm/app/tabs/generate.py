"""The Generate tab: images drawn while one watches."""

import gradio as gr

from ddpm.app.components import Outbox, told
from ddpm.app.functions import generate as behind
from ddpm.app.functions.uploads import enlarged
from ddpm.model import Model
from ddpm.samplers import DEFAULT_SAMPLER, SAMPLERS, Step
from ddpm.viewing.frames import as_grid


def tab(model: Model, name: str) -> None:
    """Lay the tab out and connect it; endpoint /generate."""
    has_classes = model.class_names is not None
    most = behind.most_steps(model)
    guided = has_classes and model.null_label is not None
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            label = gr.Dropdown(
                [behind.EVERY_CLASS, *(model.class_names or [])],
                value=behind.EVERY_CLASS,
                label="Class",
                visible=has_classes,
                allow_custom_value=True,  # so that what programs send is judged, and refused in words
            )
            with gr.Row():
                sampler = gr.Dropdown(list(SAMPLERS), value=DEFAULT_SAMPLER, label="Sampler", min_width=120)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
            steps = gr.Slider(1, most, min(20, most), step=1, label="Steps")
            number = gr.Slider(1, behind.most_images(model), min(16, behind.most_images(model)), step=1, label="Images")
            guidance = gr.Slider(
                0, 8, 1, step=0.1, label="Guidance", info="1 is off, 0 ignores the class", visible=guided
            )
            with gr.Row():
                start = gr.Button("Generate", variant="primary", min_width=120)
                cancel = gr.Button("Cancel", min_width=120)
        with gr.Column(scale=3, min_width=300):
            status = gr.Markdown("Ready.", elem_classes="status")
            samples = gr.Image(label="Samples", format="png", height=420, interactive=False, buttons=["fullscreen"])
            with gr.Row():
                png = gr.DownloadButton("Grid, PNG", size="sm", min_width=90)
                gif = gr.DownloadButton("Animation, GIF", size="sm", min_width=90)
                npz = gr.DownloadButton("Array, NPZ", size="sm", min_width=90)
    with gr.Accordion("The same from the command line and in Python", open=True), gr.Row():
        command = gr.Code(label="Command", language="shell", interactive=False, wrap_lines=True, min_width=300)
        python = gr.Code(label="Python", language="python", interactive=False, wrap_lines=True, min_width=300)

    @told
    def generate(label, sampler, steps, guidance, seed, number):
        settings = behind.Settings(label, sampler, steps, guidance, seed, number)
        options = settings.options(model)
        equivalents = (behind.as_command(name, options), behind.as_python(name, options))
        unfinished = [*[None] * 3, *equivalents]  # no gr.skip(): each would leave a component behind in the session
        yield "Starting …", None, *unfinished
        for event in behind.generate(model, settings):
            if isinstance(event, Step):
                told_step = f"Step {event.index + 1} of {event.steps}: x_t, and the x_0 that is predicted from it."
                with Outbox() as out:
                    yield told_step, out.put(behind.step_picture(model, event)), *unfinished
            else:
                with Outbox() as out:
                    grid = out.put(enlarged(as_grid(event.images), 640))
                    files = [str(path) for path in event.save(out.folder)]
                    yield f"Done: {len(event.images)} images, seed {seed}.", grid, *files, *equivalents

    run = start.click(
        generate,
        [label, sampler, steps, guidance, seed, number],
        [status, samples, png, gif, npz, command, python],
        api_name="generate",
        concurrency_id="model",
        trigger_mode="multiple",  # else a press just after Cancel is lost: to the page the run is still on
        show_progress="hidden",
    )
    cancelled = cancel.click(None, cancels=run)
    cancelled.then(lambda: "Cancelled.", None, status, queue=False, api_visibility="private", show_progress="hidden")
