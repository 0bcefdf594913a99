"""The Restore tab: a damaged image, what the model makes of it, and how sure that is."""

import gradio as gr

from ddpm.app.components import Outbox, class_field, mask_editor, told, upload
from ddpm.app.functions import restore as behind
from ddpm.app.functions.uploads import enlarged, read_fitted, read_mask
from ddpm.model import Model
from ddpm.pixels import to_uint8
from ddpm.restoration import METHODS
from ddpm.samplers import Step

BRUSH = "#D55E00"  # seen on grey as on colour
CANVAS = 320  # pixels a side


def tab(model: Model) -> None:
    """Lay the tab out and connect it; endpoint /restore."""
    _, height, width = model.image_shape
    kinds = behind.damages(model)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = upload("Image")
            gr.Markdown(f"Brought to {width}×{height}, what this model draws, as in training.", elem_classes="hint")
            kind = gr.Dropdown(kinds, value=behind.PAINTED, label="Damage")
            mask = mask_editor("Paint what is lost", CANVAS, BRUSH, height=CANVAS + 60, elem_id="mask")
            share = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="Share of pixels lost", visible=False)
            scale = gr.Slider(2, 8, 2, step=1, label="Times smaller", visible=False)
            blur = gr.Slider(0.3, 4, 1, step=0.1, label="Blur (σ in pixels)", visible=False)
            noise = gr.Slider(0, 0.5, 0, step=0.01, label="Noise (σ, of 1)")
            clean = gr.Checkbox(True, label="The upload is clean: damage it first")
            label = class_field(model)
            with gr.Accordion("Method", open=False):
                method = gr.Dropdown(list(METHODS), value="ddnm", label="Method")
                most = min(behind.MOST_STEPS, len(model.process.schedule))
                steps = gr.Slider(1, most, min(100, most), step=1, label="Steps")
                draws = gr.Slider(1, behind.MOST_DRAWS, 4, step=1, label="Draws")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                start = gr.Button("Restore", variant="primary", min_width=120)
                cancel = gr.Button("Cancel", min_width=120)
        with gr.Column(scale=3, min_width=300):
            status = gr.Markdown("Choose an image.", elem_classes="status")
            compared = gr.ImageSlider(
                label="Before and after", format="png", max_height=420, interactive=False, buttons=["download"],
                elem_classes="titled",
            )  # fmt: skip
            with gr.Row():
                every = gr.Image(
                    label="Draws", format="png", height=240, interactive=False, buttons=["download"], min_width=140,
                    elem_classes="lowered",
                )  # fmt: skip
                spread = gr.Image(
                    label="Uncertainty", format="png", height=240, interactive=False,
                    buttons=["download"], min_width=140, elem_classes="lowered",
                )  # fmt: skip

    @told
    def restore(image, kind, mask, share, scale, blur, noise, clean, method, steps, draws, seed, label):
        lost = read_mask(mask, (height, width)) if kind == behind.PAINTED else None
        damage = behind.Damage(kind, share, scale, blur, noise)
        options = {"clean": clean, "method": method, "steps": steps, "draws": draws, "seed": seed, "label": label}
        unfinished = [None] * 3  # no gr.skip(): each would leave a component behind in the session
        yield "Starting …", *unfinished
        for event in behind.restore_upload(model, image, lost, damage, **options):
            if isinstance(event, Step):
                yield f"Step {event.index + 1} of {event.steps}", *unfinished
            else:
                with Outbox() as out:
                    compared = out.put(event.before, "before"), out.put(event.after, "after")
                    yield event.report, compared, out.put(event.draws), out.put(event.uncertainty)

    @told
    def to_paint_on(image):
        """The upload, as this model sees it, under the brush."""
        if image is None:
            return None, "Choose an image."
        fitted = read_fitted(image, model.image_shape, framing=model.framing)
        return enlarged(to_uint8(fitted), CANVAS), "Ready."

    def for_kind(kind):
        shown = {mask: behind.PAINTED, share: behind.RANDOM, scale: behind.SMALL, blur: behind.BLUR}
        return [gr.update(visible=kind == own) for own in shown.values()]

    run = start.click(
        restore,
        [image, kind, mask, share, scale, blur, noise, clean, method, steps, draws, seed, label],
        [status, compared, every, spread],
        api_name="restore",
        concurrency_id="model",
        show_progress="hidden",
    )
    cancelled = cancel.click(None, cancels=run)
    cancelled.then(lambda: "Cancelled.", None, status, queue=False, api_visibility="private", show_progress="hidden")
    image.change(to_paint_on, image, [mask, status], api_visibility="private", show_progress="hidden")
    kind.change(for_kind, kind, [mask, share, scale, blur], api_visibility="private", show_progress="hidden")
