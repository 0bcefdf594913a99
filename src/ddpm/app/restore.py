"""The Restore tab: a degraded image, its restoration, and where it may be otherwise."""

import json
import shlex
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ddpm.app.components import (
    MOST_SEED,
    NO_CLASS,
    TempImages,
    address,
    as_labels,
    bounded,
    choice,
    class_field,
    figure,
    live_pictures,
    origin,
    picture_pad,
    program_file,
    seed_field,
    sheet,
    slider,
    write_png,
)
from ddpm.app.generate import SEED_INFO, in_lines
from ddpm.app.outcome import QUIET, Outcome, running
from ddpm.app.press import buttons, connect, live, pace
from ddpm.app.uploads import from_pad, mask_of, read_fitted, read_mask
from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr
from ddpm.common.pixels import made_by, to_pillow, to_uint8
from ddpm.common.randomness import derive_seed
from ddpm.model import Model, SamplingOptions
from ddpm.restoration import METHODS, Inpainting, Restored, Task, restore
from ddpm.restoration.job import ROUNDING_NOTE, UNCERTAINTY_WHITE, degrade, rounding_noise
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
NAME = "picture"  # an image's noise depends on the seed and its name, here and in `ddpm restore`
PICTURE, MASK, RESULT = f"{NAME}.png", "mask.png", "restored.png"
HEAT = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])  # dark to light
SCALE = (
    '<span class="scale" style="background:linear-gradient(to right, '
    + ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in HEAT.tolist())
    + f')"></span><span class="ends"><span>0%</span><span>{UNCERTAINTY_WHITE:.0%} of white and more</span></span>'
)
METHOD_INFO = "ddrm is quickest, ddnm better. repaint is for lost parts, dps for everything, slowly."
VIEWS = {  # and their captions
    "one draw": "one picture that fits what is left",
    "mean": "the mean of all draws",
    "all draws": "all draws",
    "differences": "",  # see `Answer.html`
    "original": "the original",
}
# the slider's noise for each damage, so that there is something to restore
USUAL_NOISE = {NOISE: 0.2, BLUR: 0.02}


@dataclass(frozen=True)
class Damage:
    """A degradation: `share` of pixels lost, `scale` of low resolution, `blur` σ in pixels, `noise` σ in [0, 1]."""

    kind: str = PAINTED
    share: float = 0.5
    scale: int = 2
    blur: float = 1.0
    noise: float = 0.0

    def words(self) -> dict[str, str | int]:
        """Return the fields of the task of `ddpm restore`, by name."""
        match self.kind:
            case "a painted part is lost":
                return {"name": "inpaint", "mask": MASK}
            case "random pixels are lost":
                return {"name": "inpaint", "mask": f"random:{self.share}"}
            case "low resolution":
                return {"name": "superresolve", "scale": bounded("the scale", self.scale, 2, 8)}
            case "blur":
                return {"name": "deblur", "kernel": f"gaussian:{self.blur}"}
            case "noise only":
                if self.noise == 0:
                    raise UserError("there is nothing to restore: raise the noise above 0")
                return {"name": "denoise"}
            case "colour is lost":
                return {"name": "colorize"}
        raise UserError(f"no damage called {self.kind!r}; there are {', '.join((PAINTED, *KINDS))}")

    def operator(self, model: Model, lost: Tensor | None, seed: int) -> SpectralOperator:
        """Return the operator for this model's images; `lost` is the painted mask, bool (H, W)."""
        if self.kind != PAINTED:
            return Task(**self.words(), seed=seed).operator(model.image_shape)  # type: ignore[arg-type]
        if lost is None or not lost.any():
            raise UserError("no pixels are marked: paint over the part to restore, or choose another damage")
        return Inpainting(model.image_shape, ~lost)


KINDS = (RANDOM, SMALL, BLUR, NOISE, GREY)


@dataclass(frozen=True)
class Answer:
    """A measurement y (C', h, w) in [-1, 1], its restoration (one image), the original if it is known, and a note."""

    y: Tensor
    restored: Restored
    original: Tensor | None
    note: str = ""

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each pixel over the draws, (H, W), in [0, 1] units, mean over the channels."""
        return self.restored.std[0].mean(0)

    def report(self) -> str:
        """Say in words how well the image is restored."""
        number, original = self.restored.samples.shape[1], self.original
        text = f"Done: {number} draws." if number > 1 else "Done: one draw. Two or more show where they differ."
        if original is not None:
            after = psnr(self.restored.mean, original[None])[0]
            text += f" PSNR of their mean {after:.1f} dB"
            seen = self.y[None].clamp(-1, 1)  # as shown, and as `ddpm restore` reports it
            if self.y.shape != original.shape:  # a small picture is shown in large pixels, a grey one in grey
                seen = interpolate(seen, original.shape[1:]).expand_as(original[None])
            before = psnr(seen, original[None])[0]
            text += f", before {before:.1f} dB"
            if after < before:
                text += ": worse than what was given. Try another method"
            text += "."
        return text + self.note

    def pictures(self) -> dict[str, Image.Image]:
        """Return the pictures by the name of their view; all but `all draws` have the size of one image."""
        draws = self.restored.samples[0]
        found = {"before": self.y, "one draw": draws[0], "mean": self.restored.mean[0]}
        if self.original is not None:
            found["original"] = self.original
        return {view: to_pillow(to_uint8(image)) for view, image in found.items()} | {"differences": heat(self.spread)}

    def html(self) -> str:
        """Return what was given beside the restored image, of which one can choose the view."""
        pictures = self.pictures()
        before = figure(address(pictures.pop("before")), "what was given", "what was given")
        sources = {view: address(picture) for view, picture in pictures.items()}
        sources["all draws"] = sheet(self.restored.samples[0])
        order = [view for view in VIEWS if view in sources]
        choices = "".join(
            f'<label><input type="radio" name="view" value="{view}"{" checked" * (view == order[0])}>{view}</label>'
            for view in order
        )
        apart = f"{self.spread.mean():.1%} on average, {self.spread.max():.1%} at most"
        captions = VIEWS | {"differences": f"{SCALE}how much the draws differ: {apart}"}
        shown = "".join(
            f'<div data-view="{view}">{figure(sources[view], view, captions[view])}</div>' for view in order
        )
        return (
            f'<div class="views">{before}<div>{shown}</div></div>'
            f'<fieldset class="choices" aria-label="Shown on the right">{choices}</fieldset>'
        )

    def save(self, path: Path, picture: Tensor, lost: Tensor | None) -> Path:
        """Write a ZIP of all pictures, with the ones that the command reads."""
        draws = {f"draw_{index:03d}": to_pillow(to_uint8(draw)) for index, draw in enumerate(self.restored.samples[0])}
        given = {PICTURE: to_pillow(to_uint8(picture))}
        if lost is not None:
            given[MASK] = to_pillow(255 * lost[None].byte())
        with zipfile.ZipFile(path, "w") as archive:
            for name, image in (self.pictures() | draws).items():
                write_png(archive, f"{name.replace(' ', '_')}.png", image)
            with made_by(None):
                for name, image in given.items():
                    write_png(archive, name, image)
        return path


def damages(model: Model) -> list[str]:
    """Return the damages that are possible for this model's images."""
    return [kind for kind in (PAINTED, *KINDS) if kind != GREY or model.image_shape[0] == 3]


def restore_upload(
    model: Model,
    source: str | bytes | None,
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
    number = bounded("the number of draws", draws, 1, MOST_DRAWS)
    count = bounded("the number of steps", steps, 1, min(MOST_STEPS, model.diffusion.schedule.timesteps))
    seed = bounded("the seed", seed, 0, MOST_SEED)
    operator = damage.operator(model, lost, seed)
    y, original = _measure(model, source, operator, damage, clean, seed)
    sigma = damage.noise if clean else max(damage.noise, rounding_noise(operator))
    note = f" {ROUNDING_NOTE}." if sigma > damage.noise else ""

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
            names=[NAME],
            callback=callback,
        )
        return Answer(y, restored, original, note)

    return live(work)


def _measure(
    model: Model, source: str | bytes | None, operator: SpectralOperator, damage: Damage, clean: bool, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Return (y, the original or None). The upload is resized to the shape that the operator expects."""
    if clean:
        original = read_fitted(source, model.image_shape, preprocessing=model.preprocessing)
        return degrade(original, operator, damage.noise, derive_seed(seed, "degrade", NAME)), original
    y = read_fitted(source, operator.measurement_shape, preprocessing=model.preprocessing)
    return (y * operator.known if isinstance(operator, Inpainting) else y), None


def heat(spread: Tensor) -> Image.Image:
    """Draw a map (H, W) of standard deviations in [0, 1] units: black is 0, the lightest colour 0.25 and more."""
    places = np.linspace(0, UNCERTAINTY_WHITE, len(HEAT))
    colours = np.stack([np.interp(spread.numpy(), places, HEAT[:, channel]) for channel in range(3)])
    return to_pillow(torch.from_numpy(colours.round().astype(np.uint8)))


def as_command(name: str, damage: Damage, options: dict[str, str | float], clean: bool) -> str:
    """Return the command that restores picture.png in the same way."""
    task = {("task" if key == "name" else key): value for key, value in damage.words().items()}
    flags = [f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in (task | options).items()]
    flags = [*flags, *(["--degrade"] if clean else []), f"--out {RESULT}"]
    return " \\\n    ".join([f"ddpm restore {shlex.quote(name)} {PICTURE}", *in_lines(flags)])


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options of `ddpm restore` that are fields of `SamplingOptions`."""
    return {key: value for key, value in options.items() if key not in ("method", "noise", "samples")}


def as_python(name: str, damage: Damage, options: dict[str, str | float], clean: bool) -> str:
    """Return the Python program that restores picture.png in the same way."""

    def words(values: dict[str, str | float]) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in values.items())

    sampling = sampling_of(options)
    own = {key: value for key, value in options.items() if key not in sampling}
    task = damage.words() | ({"seed": options["seed"]} if damage.kind == RANDOM else {})
    return (
        "import ddpm\nfrom ddpm.restoration import RestoreSettings, Task, restore_file\n\n"
        f"settings = RestoreSettings(\n    Task({words(task)}),\n    {words(own)}, degrade={clean},\n"
        f"    sampling=ddpm.SamplingOptions({words(sampling)}),\n)\n"
        f'restore_file(ddpm.load({name!r}), "{PICTURE}", "{RESULT}", settings)'
    )


def tab(model: Model, name: str) -> list[Any]:
    """Build the tab and connect its events; endpoint /restore. Return its settings."""
    _, height, width = model.image_shape
    kinds = damages(model)
    most = min(MOST_STEPS, len(model.diffusion.schedule))
    with gr.Row(elem_classes="room"):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            pad = picture_pad(model, "restore", "Picture to restore", "restore", marks=True)
            image, mask = program_file("Image"), program_file("Mask")
            kind = choice(kinds, PAINTED, "Damage")
            with gr.Column(visible=False) as random_only:
                share = slider(0.05, 0.95, 0.5, step=0.05, label="Share of pixels lost")
            with gr.Column(visible=False) as small_only:
                scale = slider(2, 8, 4, step=1, label="Times smaller")
            with gr.Column(visible=False) as blur_only:
                blur = slider(0.3, 4, 1.5, step=0.1, label="Blur (σ in pixels)")
            pressed = buttons("Restore")
        with gr.Column(scale=1, min_width=300):
            outcome = Outcome("restore", "Mark what is lost, then press Restore.", ["All pictures, ZIP"])
    with gr.Accordion("Noise, class and method", open=False), gr.Row(elem_classes=["fields", "few"]):
        noise = slider(0, 0.5, 0, step=0.01, label="Noise (σ)", info="0 is none, 0.5 hides it.", min_width=200)
        label = class_field(model, info="What it shows, if you know.", min_width=200)
        method = choice(list(METHODS), "ddnm", "Method", METHOD_INFO, min_width=200)
        steps = slider(1, most, min(100, most), step=1, label="Steps", info="More is slower.", min_width=200)
        draws = slider(1, MOST_DRAWS, 4, step=1, label="Draws", info="Each is another fit.", min_width=200)
        seed = seed_field(SEED_INFO, min_width=200)
        clean = gr.Checkbox(True, label="The picture is clean: damage it first", min_width=200)
    outcome.code()

    def restore(image, pad, kind, mask, share, scale, blur, noise, clean, method, steps, draws, seed, label):
        lost = read_mask(mask_of(pad, mask), (height, width)) if kind == PAINTED else None
        damage, source = Damage(kind, share, scale, blur, noise), from_pad(pad, image)
        options = {"method": method, "steps": steps, "draws": draws, "seed": seed, "label": label}
        yield running("Starting …"), "", *outcome.unfinished
        began = time.monotonic()
        for event in restore_upload(model, source, lost, damage, clean=clean, **options):
            if isinstance(event, Step):
                pictures = live_pictures(event, model.diffusion.schedule.log_snr(event.t))
                yield pace(event, began), pictures, *outcome.unfinished
            else:
                given = {"method": method, "noise": noise, "samples": draws, "steps": steps, "seed": seed}
                given |= {"batch_size": min(draws, model.default_batch_size)}
                given |= {} if as_labels(label) is None else {"labels": label}
                equivalents = [write(name, damage, given, clean) for write in (as_command, as_python)]
                shape = model.image_shape if event.original is not None else event.y.shape
                picture = read_fitted(source, shape, preprocessing=model.preprocessing)
                sampling = SamplingOptions(**sampling_of(given))
                with TempImages() as out:
                    with made_by(origin(model, equivalents[0], sampling)):
                        file = event.save(out.folder / "restored.zip", picture, lost)
                    yield escape(event.report()), "", event.html(), str(file), *equivalents

    def for_kind(kind):
        """Show the slider of a damage. Never the pad: an update would replace it."""
        return [gr.Column(visible=kind == one) for one in (RANDOM, SMALL, BLUR)]

    inputs = [image, pad, kind, mask, share, scale, blur, noise, clean, method, steps, draws, seed, label]
    connect(pressed, restore, inputs, outcome)
    marking = f"(kind) => ddpm.marking('restore', kind === {json.dumps(PAINTED)})"
    kind.change(None, kind, None, js=marking, **QUIET)
    kind.change(for_kind, kind, [random_only, small_only, blur_only], queue=False, **QUIET)
    kind.input(lambda kind: USUAL_NOISE.get(kind, 0), kind, noise, queue=False, **QUIET)
    return [kind, share, scale, blur, noise, label, method, steps, draws, seed, clean]
