"""The Edit tab: an upload made more the model's own, and the way from one upload to another."""

import gradio as gr

from ddpm.app.components import Outbox, class_field, told, upload
from ddpm.app.functions import edit as behind
from ddpm.model import Model


def tab(model: Model) -> None:
    """Lay the tab out and connect it; endpoints /edit and /interpolate."""
    _, height, width = model.image_shape
    most_steps = min(behind.MOST_STEPS, len(model.process.schedule))

    @told
    def edit(image, strength, label, steps, seed):
        before, after, report = behind.edit_upload(model, image, strength, label=label, steps=steps, seed=seed)
        with Outbox() as out:
            yield report, (out.put(before, "before"), out.put(after, "after"))

    @told
    def interpolate(first, second, depth, number, label, steps, seed):
        row = behind.between(model, (first, second), depth, number=number, label=label, steps=steps, seed=seed)
        with Outbox() as out:
            yield out.put(row)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = upload("Image")
            strength = gr.Slider(0, 1, 0.4, step=0.05, label="Strength", info="0 keeps the image, 1 draws a new one")
            with gr.Accordion("Class, steps and seed, here and below", open=False):
                label = class_field(model)
                steps = gr.Slider(1, most_steps, min(50, most_steps), step=1, label="Steps of a whole run")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            start = gr.Button("Edit", variant="primary")
        with gr.Column(scale=3, min_width=300):
            status = gr.Markdown(
                f"Noised and denoised again. Uploads are brought to {width}×{height}, as in training.",
                elem_classes=["status", "hint"],
            )
            compared = gr.ImageSlider(
                label="Before and after", format="png", max_height=420, interactive=False, buttons=["download"],
                elem_classes="titled",
            )  # fmt: skip
    gr.Markdown("### From one image to another")
    with gr.Row():
        first = upload("First", min_width=140)
        second = upload("Second", min_width=140)
        with gr.Column(min_width=260):
            depth = gr.Slider(0, 1, 0.5, step=0.05, label="Depth", info="how far both are noised before they are mixed")
            number = gr.Slider(1, behind.MOST_BETWEEN, 7, step=1, label="Images between")
            walk = gr.Button("Interpolate", variant="primary")
    row = gr.Image(
        label="From the first to the second", format="png", height=180, interactive=False, buttons=["download"]
    )

    start.click(
        edit, [image, strength, label, steps, seed], [status, compared], api_name="edit", concurrency_id="model"
    )
    walk.click(
        interpolate,
        [first, second, depth, number, label, steps, seed],
        row,
        api_name="interpolate",
        concurrency_id="model",
    )
