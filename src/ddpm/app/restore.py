"""The Restore tab: a degraded image, its restoration and the uncertainty of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from ddpm.app.components import (
    MOST_SEED,
    NO_CLASS,
    SHOWN_SIDE,
    TempImages,
    as_labels,
    bounded,
    class_field,
    enlarged,
    live,
    mask_editor,
    read_fitted,
    read_mask,
    show_user_errors,
    upload,
)
from ddpm.common.errors import UserError, require
from ddpm.common.fidelity import psnr
from ddpm.common.pixels import to_uint8
from ddpm.common.randomness import derive_seed
from ddpm.model import Model
from ddpm.plotting.animation import as_grid
from ddpm.restoration import METHODS, Inpainting, Restored, Task, restore
from ddpm.restoration.job import ROUNDING_NOTE, degrade, rounding_noise
from ddpm.restoration.operator import SpectralOperator
from ddpm.samplers import Step

MOST_DRAWS, MOST_STEPS = 16, 250
PAINTED, RANDOM, SMALL, BLUR, NOISE, GREY = (
    "a painted part is lost",
    "random pixels are lost",
    "low resolution",
    "blur",
    "noise only",
    "colour is lost",
)


@dataclass(frozen=True)
class Damage:
    """A degradation: `share` of pixels lost, `scale` of low resolution, `blur` σ in pixels, `noise` σ in [0, 1]."""

    kind: str = PAINTED
    share: float = 0.5
    scale: int = 2
    blur: float = 1.0
    noise: float = 0.0

    def task(self) -> Task:
        """Return the task of `ddpm restore`. A painted mask comes with the upload and has none."""
        match self.kind:
            case "random pixels are lost":
                return Task("inpaint", mask=f"random:{self.share}")
            case "low resolution":
                return Task("superresolve", scale=bounded("the scale", self.scale, 2, 8))
            case "blur":
                return Task("deblur", kernel=f"gaussian:{self.blur}")
            case "noise only":
                return Task("denoise")
            case "colour is lost":
                return Task("colorize")
        raise UserError(f"no damage called {self.kind!r}; there are {', '.join((PAINTED, *KINDS))}")

    def operator(self, model: Model, lost: Tensor | None) -> SpectralOperator:
        """Return the operator for this model's images; `lost` is the painted mask, bool (H, W)."""
        if self.kind != PAINTED:
            return self.task().operator(model.image_shape)
        if lost is None or not lost.any():
            raise UserError("no pixels are marked: paint over the part to restore, or choose another damage")
        return Inpainting(model.image_shape, ~lost)


KINDS = (RANDOM, SMALL, BLUR, NOISE, GREY)


@dataclass(frozen=True)
class Answer:
    """Pictures of a restoration, and its scores in words."""

    before: Image.Image
    after: Image.Image
    draws: Image.Image
    uncertainty: Image.Image
    report: str


def damages(model: Model) -> list[str]:
    """Return the damages that are possible for this model's images."""
    return [kind for kind in (PAINTED, *KINDS) if kind != GREY or model.image_shape[0] == 3]


def restore_upload(
    model: Model,
    source: str | None,
    lost: Tensor | None,
    damage: Damage,
    *,
    clean: bool = True,
    method: str = "ddnm",
    steps: int = 100,
    draws: int = 4,
    seed: int = 0,
    label: str = NO_CLASS,
) -> Iterator[Step | Answer]:
    """Restore an upload at the model's size; yield steps while they happen, then the answer.

    `clean`: degrade the upload first and compare the result with it. Otherwise the upload is the degraded image.
    """
    operator = damage.operator(model, lost)
    number = bounded("the number of draws", draws, 1, MOST_DRAWS)
    count = bounded("the number of steps", steps, 1, min(MOST_STEPS, model.diffusion.schedule.timesteps))
    seed = bounded("the seed", seed, 0, MOST_SEED)
    y, original = _measure(model, source, operator, damage, clean, seed)
    sigma = damage.noise if clean else max(damage.noise, rounding_noise(operator))

    def work(callback) -> Answer:
        restored = restore(
            model,
            y[None],
            operator,
            method=method,
            noise=sigma,
            samples=number,
            steps=count,
            labels=as_labels(label),
            seed=seed,
            batch_size=min(number, model.default_batch_size),
            callback=callback,
        )
        found = answer(y, restored, original)
        return replace(found, report=f"{found.report} {ROUNDING_NOTE}.") if sigma > damage.noise else found

    return live(work)


def _measure(
    model: Model, source: str | None, operator: SpectralOperator, damage: Damage, clean: bool, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Return (y, the original or None). The upload is resized to the shape that the operator expects."""
    if clean:
        original = read_fitted(source, model.image_shape, preprocessing=model.preprocessing)
        return degrade(original, operator, damage.noise, derive_seed(seed, "degrade")), original
    y = read_fitted(source, operator.measurement_shape, preprocessing=model.preprocessing)
    return (y * operator.known if isinstance(operator, Inpainting) else y), None


def answer(y: Tensor, restored: Restored, original: Tensor | None) -> Answer:
    """Draw the pictures of the first restored image; y is (C', h, w) in [-1, 1]."""
    before = enlarged(to_uint8(y))
    after = enlarged(to_uint8(restored.mean[0]))
    mode = "RGB" if "RGB" in (before.mode, after.mode) else "L"
    before = before.convert(mode).resize(after.size, Image.Resampling.NEAREST)
    draws = restored.samples[0]
    spread = restored.std[0].mean(0)
    report = f"Mean of {len(draws)} draws." if len(draws) > 1 else "One draw; two or more show the uncertainty."
    if len(draws) > 1:
        report += f" Their standard deviation: {spread.mean():.3f} on average, {spread.max():.3f} at most."
    if original is not None:
        report += f" PSNR {psnr(restored.mean, original[None])[0]:.1f} dB"
        seen = y[None].clamp(-1, 1)  # as shown, and as `ddpm restore` reports it
        report += f", before {psnr(seen, original[None])[0]:.1f} dB." if y.shape == original.shape else "."
    return Answer(before, after.convert(mode), enlarged(as_grid(draws)), heat(spread), report)


def heat(spread: Tensor) -> Image.Image:
    """Draw a map (H, W) of standard deviations: black is zero, the lightest colour is the maximum."""
    colours = require("matplotlib", "app").colormaps["magma"]
    pixels = colours((spread / spread.max().clamp(min=1e-6)).numpy(), bytes=True)[..., :3]
    return enlarged(torch.from_numpy(pixels).permute(2, 0, 1), SHOWN_SIDE)


BRUSH = "#D55E00"  # visible on grey and on colour
CANVAS = 320  # pixels a side


def tab(model: Model) -> None:
    """Build the tab and connect its events; endpoint /restore."""
    _, height, width = model.image_shape
    kinds = damages(model)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = upload("Image")
            gr.Markdown(f"Resized to {width}×{height}, the size of this model, as in training.", elem_classes="hint")
            kind = gr.Dropdown(kinds, value=PAINTED, label="Damage")
            mask = mask_editor("Paint what is lost", CANVAS, BRUSH, height=CANVAS + 60, elem_id="mask")
            share = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="Share of pixels lost", visible=False)
            scale = gr.Slider(2, 8, 2, step=1, label="Times smaller", visible=False)
            blur = gr.Slider(0.3, 4, 1, step=0.1, label="Blur (σ in pixels)", visible=False)
            noise = gr.Slider(0, 0.5, 0, step=0.01, label="Noise (σ, of 1)")
            clean = gr.Checkbox(True, label="The upload is clean: damage it first")
            label = class_field(model)
            with gr.Accordion("Method", open=False):
                method = gr.Dropdown(list(METHODS), value="ddnm", label="Method")
                most = min(MOST_STEPS, len(model.diffusion.schedule))
                steps = gr.Slider(1, most, min(100, most), step=1, label="Steps")
                draws = gr.Slider(1, MOST_DRAWS, 4, step=1, label="Draws")
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

    @show_user_errors
    def restore(image, kind, mask, share, scale, blur, noise, clean, method, steps, draws, seed, label):
        lost = read_mask(mask, (height, width)) if kind == PAINTED else None
        damage = Damage(kind, share, scale, blur, noise)
        options = {"clean": clean, "method": method, "steps": steps, "draws": draws, "seed": seed, "label": label}
        unfinished = [None] * 3  # not gr.skip(): each one leaves a component behind in the session
        yield "Starting …", *unfinished
        for event in restore_upload(model, image, lost, damage, **options):
            if isinstance(event, Step):
                yield f"Step {event.index + 1} of {event.steps}", *unfinished
            else:
                with TempImages() as out:
                    compared = out.put(event.before, "before"), out.put(event.after, "after")
                    yield event.report, compared, out.put(event.draws), out.put(event.uncertainty)

    @show_user_errors
    def to_paint_on(image):
        """Show the upload, as this model sees it, under the brush."""
        if image is None:
            return None, "Choose an image."
        fitted = read_fitted(image, model.image_shape, preprocessing=model.preprocessing)
        return enlarged(to_uint8(fitted), CANVAS), "Ready."

    def for_kind(kind):
        shown = {mask: PAINTED, share: RANDOM, scale: SMALL, blur: BLUR}
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
