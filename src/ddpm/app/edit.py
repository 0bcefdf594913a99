"""The Edit tab: SDEdit of an upload, and interpolation between two uploads."""

from collections.abc import Sequence

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ddpm.app.components import (
    MOST_SEED,
    NO_CLASS,
    TempImages,
    as_labels,
    bounded,
    class_field,
    enlarged,
    read_fitted,
    show_user_errors,
    upload,
)
from ddpm.common.fidelity import SSIM_RADIUS, psnr, ssim
from ddpm.common.pixels import to_uint8
from ddpm.editing import Editor, interpolate, sdedit
from ddpm.model import Model
from ddpm.plotting.animation import as_grid

MOST_STEPS, MOST_BETWEEN, ROW_SIDE = 250, 11, 900


def edit_upload(
    model: Model, source: str | None, strength: float, *, label: str = NO_CLASS, steps: int = 50, seed: int = 0
) -> tuple[Image.Image, Image.Image, str]:
    """Noise an upload by `strength` and denoise it again (SDEdit); return (before, after, report)."""
    original = read_fitted(source, model.image_shape, preprocessing=model.preprocessing)[None]
    edited = sdedit(_editor(model, label, seed, 1), original, strength, steps=_steps(model, steps))
    report = f"Strength {strength:g}: PSNR {psnr(edited, original)[0]:.1f} dB to the original"
    if min(model.image_shape[1:]) > 2 * SSIM_RADIUS:
        report += f", SSIM {ssim(edited, original)[0]:.3f}"
    return enlarged(to_uint8(original[0])), enlarged(to_uint8(edited[0])), report + "."


def between(
    model: Model,
    sources: Sequence[str | None],
    depth: float,
    *,
    number: int = 7,
    label: str = NO_CLASS,
    steps: int = 50,
    seed: int = 0,
) -> Image.Image:
    """Interpolate between two uploads (Ho et al. 2020, figure 8); return a row with the uploads at its ends."""
    first, second = (
        read_fitted(source, model.image_shape, f"the {which} upload", model.preprocessing)
        for source, which in zip(sources, ("first", "second"), strict=True)
    )
    count = bounded("the number of images", number, 1, MOST_BETWEEN)
    weights = np.linspace(0, 1, count + 2)[1:-1].tolist()
    editor = _editor(model, label, seed, count)
    images = interpolate(editor, first, second, weights, depth=depth, steps=_steps(model, steps))
    row = torch.cat([first[None], images, second[None]])
    return enlarged(as_grid(row, len(row)), ROW_SIDE)


def _editor(model: Model, label: str, seed: int, number: int) -> Editor:
    """Return an editor whose batch has no padding."""
    return Editor(
        model,
        labels=as_labels(label),
        seed=bounded("the seed", seed, 0, MOST_SEED),
        batch_size=min(number, model.default_batch_size),
    )


def _steps(model: Model, steps: int) -> int:
    return bounded("the number of steps", steps, 1, min(MOST_STEPS, model.diffusion.schedule.timesteps))


def tab(model: Model) -> None:
    """Build the tab and connect its events; endpoints /edit and /interpolate."""
    _, height, width = model.image_shape
    most_steps = min(MOST_STEPS, len(model.diffusion.schedule))

    @show_user_errors
    def edit(image, strength, label, steps, seed):
        before, after, report = edit_upload(model, image, strength, label=label, steps=steps, seed=seed)
        with TempImages() as out:
            yield report, (out.put(before, "before"), out.put(after, "after"))

    @show_user_errors
    def interpolate(first, second, depth, number, label, steps, seed):
        row = between(model, (first, second), depth, number=number, label=label, steps=steps, seed=seed)
        with TempImages() as out:
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
                f"Adds noise and removes it again. Uploads are resized to {width}×{height}, as in training.",
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
            number = gr.Slider(1, MOST_BETWEEN, 7, step=1, label="Images between")
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
