"""The Edit tab: SDEdit and translation of a picture, and interpolation between two pictures."""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from ddpm.app.components import (
    MOST_SEED,
    NO_CLASS,
    TempImages,
    address,
    as_labels,
    bounded,
    choice,
    class_field,
    classes,
    figure,
    live_pictures,
    origin,
    picture_pad,
    program_file,
    seed_field,
    slider,
    tile,
)
from ddpm.app.figures import Curve, chart
from ddpm.app.figures import figure as chart_figure
from ddpm.app.generate import USUAL_GUIDANCE, has_guidance, in_lines
from ddpm.app.outcome import QUIET, Outcome, running
from ddpm.app.press import buttons, connect, live, pace
from ddpm.app.uploads import from_pad, read_fitted
from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr, ssim_or_none
from ddpm.common.pixels import made_by, save_grid, save_picture, to_pillow, to_uint8
from ddpm.editing import CurvePoint, Editor, fidelity_curve, interpolate, sdedit, translate
from ddpm.editing.editor import LOSS_DEPTHS, STRENGTHS
from ddpm.editing.pictures import draw_curve
from ddpm.model import Model
from ddpm.plotting.plots import save_figure
from ddpm.samplers import Callback, Step
from ddpm.samplers.denoiser import Denoiser, Prediction

MOST_STEPS, MOST_BETWEEN = 250, 11
USUAL_DEPTH = 0.6  # with less, strokes of both pictures lie on each other
RENOISE, TRANSLATE, CURVE = "noise it and remove the noise", "translate it to another class", "try every strength"


@dataclass
class Watch:
    """Calls back after each network evaluation of an edit, of which about `expected` are to come."""

    callback: Callback
    expected: int
    done: int = 0

    def see(self, t: float, x_t: Tensor, x_0: Tensor) -> None:
        self.callback(Step(min(self.done, self.expected - 1), self.expected, t, t, x_t, x_0, x_t))
        self.done += 1


class WatchedDenoiser:
    """A denoiser whose calls are seen; otherwise the denoiser itself."""

    def __init__(self, denoiser: Denoiser, watch: Watch):
        self.denoiser, self.watch = denoiser, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x_t: Tensor, t: Any) -> Prediction:
        predicted = self.denoiser(x_t, t)
        self.watch.see(float(t), x_t, predicted.x_0)
        return predicted


class WatchedEditor(Editor):
    """An editor whose network evaluations are seen."""

    watch: Watch

    def with_options(self, **changes: Any) -> "WatchedEditor":
        editor = WatchedEditor(self.model, self.options, **changes)
        editor.watch = self.watch
        return editor

    def run(self, work: Callable[..., Tensor], *images: Tensor, **options: Any) -> Tensor:
        watch = self.watch
        return super().run(lambda denoiser, *rest: work(WatchedDenoiser(denoiser, watch), *rest), *images, **options)


@dataclass(frozen=True)
class Settings:
    """How to edit; the fields have the names of the flags of `ddpm edit` and `ddpm interpolate`."""

    label: str = NO_CLASS
    guidance: float = 1.0
    steps: int = 50
    seed: int = 0

    def options(self, model: Model, number: int) -> dict[str, Any]:
        """Return the fields of `SamplingOptions` for `number` images; raise UserError if one is out of bounds."""
        most = min(MOST_STEPS, model.diffusion.schedule.timesteps)
        options: dict[str, Any] = {
            "steps": bounded("the number of steps", self.steps, 1, most),
            "seed": bounded("the seed", self.seed, 0, MOST_SEED),
            "batch_size": min(number, model.default_batch_size),  # so that the batch has no padding
        }
        if as_labels(self.label) is not None:
            options["labels"] = self.label
            if self.guidance != 1:
                options["guidance"] = float(self.guidance)
        return options

    def editor(self, model: Model, number: int) -> WatchedEditor:
        """Return an editor, which has to be given a `watch` before it works."""
        return WatchedEditor(model, sampler="ancestral", **self.options(model, number))

    def taken(self, strength: float) -> int:
        """Return the steps that an edit of a strength or depth takes."""
        return max(1, round(strength * self.steps))


def edit_upload(
    model: Model, original: Tensor, strength: float, settings: Settings, to: str | None = None
) -> Iterator[Step | Tensor]:
    """Noise an image (C, H, W) by `strength` and denoise it (SDEdit), or translate it to the class `to`.

    Yields steps while they happen, then the edited image.
    """
    editor = settings.editor(model, 1)

    def work(callback: Callback) -> Tensor:
        half = max(2, settings.steps)
        editor.watch = Watch(callback, settings.taken(strength) if to is None else 2 * half)
        if to is None:
            return sdedit(editor, original[None], strength)[0]
        if to == NO_CLASS:
            raise UserError("no class is chosen to translate to: choose one")
        return translate(editor, original[None], as_labels(settings.label), to, evaluations=half)[0]

    return live(work)


def try_strengths(model: Model, original: Tensor, settings: Settings) -> Iterator[Step | list[CurvePoint]]:
    """Edit an image (C, H, W) by each strength; yield steps while they happen, then the points, strength 0 first."""
    editor = settings.editor(model, 1)

    def work(callback: Callback) -> list[CurvePoint]:
        edits = sum(settings.taken(strength) for strength in STRENGTHS)
        editor.watch = Watch(callback, edits + (1 + len(STRENGTHS)) * len(LOSS_DEPTHS))
        return fidelity_curve(editor, original[None])

    return live(work)


def curve_html(points: Sequence[CurvePoint]) -> str:
    """Return the HTML of a fidelity curve: every image, then its PSNR and its denoising loss over the strength."""
    tiles, edited = [], points[1:]
    for point in points:
        words = f"strength {point.strength:g}, PSNR {point.psnr:.1f} dB" if point.strength else "the original"
        name = f"strength_{point.strength:.1f}.png"
        tiles.append(tile(to_uint8(point.images[0]), words, name, f"{point.strength:g}"))
    x = np.array([point.strength for point in edited])
    curves = [
        Curve("PSNR to the original, dB", x, np.array([point.psnr for point in edited]), 0),
        Curve("denoising loss: lower is more like the model's images", x,
              np.array([point.denoising_loss for point in edited]), 1),
    ]  # fmt: skip
    charts = [chart(title, "strength", [curve]) for title, curve in zip(("PSNR", "loss"), curves, strict=True)]
    plot = chart_figure(charts, curves, "PSNR and denoising loss over the strength")
    return f'<div class="tiles" style="--columns:6">{"".join(tiles)}</div>{plot}'


def report_edit(edited: Tensor, original: Tensor, done: str) -> str:
    """Say how close an edited image is to the original, (C, H, W) both."""
    report = f"{done}: PSNR {psnr(edited[None], original[None])[0]:.1f} dB"
    similarity = ssim_or_none(edited[None], original[None])
    report += "" if similarity is None else f", SSIM {float(similarity[0]):.3f}"
    return f"{report} to the original (more is closer)."


def between(
    model: Model, sources: Sequence[str | bytes | None], depth: float, number: int, settings: Settings
) -> Iterator[Step | Tensor]:
    """Interpolate between two uploads (Ho et al. 2020, figure 8).

    Yields steps while they happen, then `number` images from λ = 0 to 1 between the two uploads.
    """
    first, second = (
        read_fitted(source, model.image_shape, f"the {which} upload", model.preprocessing)
        for source, which in zip(sources, ("first", "second"), strict=True)
    )
    count = bounded("the number of images", number, 2, MOST_BETWEEN)
    editor = settings.editor(model, count)

    def work(callback: Callback) -> Tensor:
        editor.watch = Watch(callback, settings.taken(depth))
        images = interpolate(editor, first, second, np.linspace(0, 1, count).tolist(), depth=depth)
        return torch.cat([first[None], images, second[None]])

    return live(work)


def as_command(verb: str, name: str, files: str, own: dict[str, Any], options: dict[str, Any]) -> str:
    """Return the command that does the same."""
    words = {flag: "" if value is True else f" {shlex.quote(str(value))}" for flag, value in (own | options).items()}
    flags = [f"--{flag.replace('_', '-')}{word}" for flag, word in words.items()]
    return " \\\n    ".join([f"ddpm {verb} {shlex.quote(name)} {files}", *in_lines(flags)])


def as_python(name: str, call: str, files: Sequence[str], options: dict[str, Any], save: str) -> str:
    """Return the Python program that does the same."""
    words = "".join(f", {key}={value!r}" for key, value in options.items())
    read = "\n".join(f'{file} = read_fitted(Path("{file}.png"), model)' for file in files)
    return (
        "from pathlib import Path\n\nimport ddpm\n"
        "from ddpm.editing import Editor, fidelity_curve, interpolate, sdedit, translate\n"
        "from ddpm.editing.pictures import draw_curve, read_fitted\n"
        "from ddpm.plotting.plots import save_figure\n\n"
        f"model = ddpm.load({name!r})\n{read}\n"
        f'editor = Editor(model, sampler="ancestral"{words})\nimages = {call}\n{save}'
    )


def tab(model: Model, name: str) -> list[Any]:
    """Build the tab and connect its events; endpoints /edit and /interpolate. Return its settings."""
    most_steps = min(MOST_STEPS, len(model.diffusion.schedule))
    guided = has_guidance(model)
    log_snr = model.diffusion.schedule.log_snr

    def fields() -> list[Any]:
        """Create the fields of `Settings` after the class, in its order."""
        with (
            gr.Accordion("Guidance, steps and seed" if guided else "Steps and seed", open=False),
            gr.Row(elem_classes="fields"),
        ):
            guidance = slider(0, 8, USUAL_GUIDANCE if guided else 1, step=0.1, label="Guidance", visible=guided,
                              info="1 is off.", min_width=200)  # fmt: skip
            steps = slider(1, most_steps, min(50, most_steps), step=1, label="Steps", info="Of a whole run.",
                           min_width=200)  # fmt: skip
            return [guidance, steps, seed_field("Same seed, same result.", min_width=200)]

    with gr.Row(elem_classes="room"):
        with gr.Column(scale=1, min_width=300, elem_classes="controls"):
            pad, image = picture_pad(model, "edit", "Picture to edit", "edit"), program_file("Image")
            ways = [RENOISE, *([TRANSLATE] if model.class_names else []), CURVE]
            way = choice(ways, RENOISE, "What to do", chips={})
            strength = slider(0, 1, 0.5, step=0.05, label="Strength", info="0 keeps the picture, 1 draws a new one")
            label = class_field(model)
            with gr.Column(visible=False) as target:
                names = model.class_names or [NO_CLASS]
                to = choice(names, names[0], "Translate to")
            pressed = buttons("Edit")
        with gr.Column(scale=1, min_width=300):
            outcome = Outcome("edit", "Choose what to do, then press Edit.", ["Picture, PNG", "Result, PNG"])
    own = [label, *fields()]
    outcome.code()
    gr.Markdown("## From one picture to another")
    with gr.Column(elem_classes="room"):
        with gr.Column(elem_classes="controls"):
            with gr.Row():
                with gr.Column(min_width=300):
                    first_pad = picture_pad(model, "first", "First picture", "interpolate")
                    first = program_file("First")
                with gr.Column(min_width=300):
                    second_pad = picture_pad(model, "second", "Second picture", "interpolate", filled=1)
                    second = program_file("Second")
            with gr.Row(elem_classes=["fields", "few"]):
                depth = slider(
                    0, 1, USUAL_DEPTH, step=0.05, label="Depth", info="How far both are noised.", min_width=200
                )
                number = slider(2, MOST_BETWEEN, 7, step=1, label="Images between", info="Of a row.", min_width=200)
                both = class_field(model, info="What both show.", min_width=200)
            walk = buttons("Interpolate")
        row = Outcome(
            "interpolate", "Choose two pictures, then press Interpolate.", ["First, PNG", "Second, PNG", "Row, PNG"]
        )
    walk_own = [both, *fields()]
    row.code()

    def edit(image, pad, way, strength, to, label, guidance, steps, seed):
        if way not in ways:
            raise UserError(f"no way {way!r} to edit; there are {', '.join(ways)}")
        settings, goal = Settings(label, guidance, steps, seed), to if way == TRANSLATE else None
        yield running("Starting …"), "", *outcome.unfinished
        original = read_fitted(from_pad(pad, image), model.image_shape, preprocessing=model.preprocessing)
        began, options = time.monotonic(), settings.options(model, 1)
        events: Iterator[Any] = (
            try_strengths(model, original, settings)
            if way == CURVE
            else edit_upload(model, original, strength, settings, goal)
        )
        for event in events:
            if isinstance(event, Step):
                yield pace(event, began), live_pictures(event, log_snr(event.t)), *outcome.unfinished
        if way == CURVE:
            flags, call = {"curve": True}, "fidelity_curve(editor, picture)"
            report, html = f"Done: {len(event) - 1} strengths.", curve_html(event)
            save = 'save_figure(draw_curve(images), Path("edited.png"))'
        else:
            if goal is None:
                flags, call = {"strength": strength}, f"sdedit(editor, picture, {strength:g})"
            else:
                source = as_labels(label)
                flags = {"to": goal, "evaluations": 2 * steps}
                call = f"translate(editor, picture, {source!r}, {goal!r}, evaluations={steps})"
            report = (
                report_edit(event, original, f"Strength {strength:g}") if goal is None else f"Translated to {goal}."
            )
            before, after = (address(to_pillow(to_uint8(one))) for one in (original, event))
            html = f'<div class="views">{figure(before, "before", "before")}{figure(after, "after", "after")}</div>'
            save = 'ddpm.save_grid(images, "edited.png", columns=1, gap=0)'
        command = as_command("edit", name, "picture.png", flags | {"out": "edited.png"}, options)
        python = as_python(name, call, ["picture"], options, save)
        with TempImages() as out:
            given, result = (out.folder / f"{called}.png" for called in ("picture", "edited"))
            save_picture(to_uint8(original), given)
            with made_by(origin(model, command, settings.editor(model, 1).options)):
                if way == CURVE:
                    save_figure(draw_curve(event), result)
                else:
                    save_picture(to_uint8(event), result)
            yield escape(report), "", html, str(given), str(result), command, python

    def interpolation(first, first_pad, second, second_pad, depth, number, label, guidance, steps, seed):
        settings = Settings(label, guidance, steps, seed)
        sources = from_pad(first_pad, first), from_pad(second_pad, second)
        yield running("Starting …"), "", *row.unfinished
        began = time.monotonic()
        for event in between(model, sources, depth, number, settings):
            if isinstance(event, Step):
                yield pace(event, began), live_pictures(event, log_snr(event.t)), *row.unfinished
                continue
            options, last = settings.options(model, number), len(event) - 1
            command = as_command(
                "interpolate",
                name,
                "first.png second.png",
                {"num": number, "depths": depth, "out": "interpolation.png"},
                options,
            )
            weights = f"[i / {number - 1} for i in range({number})]"
            call = f"interpolate(editor, first[0], second[0], {weights}, depth={depth:g})"
            save = (
                "images = [first, images, second]\n"
                f'ddpm.save_grid(torch.cat(images), "interpolation.png", columns={number + 2})'
            )
            python = as_python(name, call, ["first", "second"], options, "import torch\n\n" + save)
            captions = ["the first", *(f"λ = {i / (number - 1):.2f}" for i in range(number)), "the second"]
            tiles = "".join(
                tile(to_uint8(image), caption, f"between_{index:02d}.png")
                for index, (image, caption) in enumerate(zip(event, captions, strict=True))
            )
            html = f'<div class="tiles" style="--columns:{len(event)}">{tiles}</div>'
            with TempImages() as out:
                paths = [
                    save_picture(to_uint8(event[place]), out.folder / f"{called}.png")
                    for place, called in ((0, "first"), (last, "second"))
                ]
                with made_by(origin(model, command, settings.editor(model, number).options)):
                    paths.append(save_grid(event, out.folder / "interpolation.png", columns=len(event)))
                done = f"Done: {number} images between, seed {seed}."
                yield done, "", html, *map(str, paths), command, python

    connect(pressed, edit, [image, pad, way, strength, to, *own], outcome)
    connect(walk, interpolation, [first, first_pad, second, second_pad, depth, number, *walk_own], row)
    way.change(
        lambda way: [
            gr.Slider(visible=way == RENOISE),
            gr.Column(visible=way == TRANSLATE),
            gr.HTML(label="Class that it shows now" if way == TRANSLATE else "Class"),
        ],
        way, [strength, target, label], queue=False, **QUIET,
    )  # fmt: skip
    # the class of an example is known
    known = json.dumps([TRANSLATE, classes(model)[0] if model.class_names else ""])
    gr.on([way.input, pad.change], None, [way, label], label, js=f"(...all) => ddpm.shown({known}, ...all)", **QUIET)
    return [way, strength, to, *own, depth, number, *walk_own]
