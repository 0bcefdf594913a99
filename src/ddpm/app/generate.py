"""The Generate tab: sample images and watch the denoising."""

import io
import json
import math
import shlex
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from ddpm.app.components import (
    MOST_SEED,
    TempImages,
    bounded,
    choice,
    film,
    origin,
    progress,
    seed_field,
    sheet,
    sheet_layout,
    shots,
    slider,
    tile,
    write_png,
)
from ddpm.app.outcome import QUIET, Outcome, running
from ddpm.app.press import WAITING, Cancelled, buttons, connect, live, pace, run_after, show_user_errors
from ddpm.common.pixels import made_by, origin_text, save_grid, to_pillow, to_uint8
from ddpm.model import Model, SamplingOptions
from ddpm.networks.inference import count_flops
from ddpm.networks.unet import UNet
from ddpm.plotting.animation import Frame, Recorder, Trajectory, as_grid
from ddpm.plotting.trace import recording
from ddpm.samplers import DEFAULT_SAMPLER, SAMPLERS, Callback, Step, find_sampler

MOST_IMAGES, MOST_STEPS = 64, 1000
GIF_FRAMES, FILM_FRAMES = 40, 20
EVERY_CLASS = "every class in turn"
FILES = ("Grid, PNG", "Images, ZIP", "Animation, GIF", "Array, NPZ")
MOST_CHIPS = 12  # classes that are shown side by side
SEED_INFO = "The same seed draws the same images."
LIVE = '<span class="drawing">Drawing …</span>'  # the status while a slider moves
USUAL_GUIDANCE = 1.5  # more digits are read as asked for than with 1 (README)
QUICK_FLOPS = 1e12  # about ten seconds of one processor core


@dataclass(frozen=True)
class Settings:
    """The choices of the Generate tab; `label` is a class name or `EVERY_CLASS`."""

    label: str = EVERY_CLASS
    sampler: str = DEFAULT_SAMPLER
    steps: int = 20
    guidance: float = 1.0
    seed: int = 0
    number: int = 16

    def options(self, model: Model) -> dict[str, Any]:
        """Return the arguments of `Model.sample`; raise UserError if one is outside the page's bounds.

        One forward pass holds all images without padding, because the page samples few images and should be fast.
        """
        number = bounded("the number of images", self.number, 1, most_images(model))
        options: dict[str, Any] = {
            "num": number,
            "sampler": self.sampler,
            "steps": bounded("the number of steps", self.steps, 1, most_steps(model)),
            "seed": bounded("the seed", self.seed, 0, MOST_SEED),
        }
        if self.label != EVERY_CLASS:
            options["labels"] = self.label
        if self.guidance != 1:
            options["guidance"] = float(self.guidance)
        if number != model.default_batch_size:
            options["batch_size"] = number
        return options


@dataclass(frozen=True)
class Samples:
    """Sampled images, float (N, C, H, W) in [-1, 1], and their trajectory; `stopped`: the step at which both end."""

    images: Tensor
    trajectory: Trajectory
    stopped: Step | None = None

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Write samples.png (a grid), .zip (single images), .gif (the denoising) and .npz (`arr_0`, uint8, N,H,W,C)."""
        grid, singles, gif, array = (folder / f"samples.{ending}" for ending in ("png", "zip", "gif", "npz"))
        save_grid(self.images, grid)
        with zipfile.ZipFile(singles, "w") as archive:
            for index, pixels in enumerate(to_uint8(self.images)):
                write_png(archive, f"{index:06d}.png", to_pillow(pixels), index=index)
            archive.comment = origin_text().encode()
        self.trajectory.save(gif)
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=to_uint8(self.images).permute(0, 2, 3, 1).numpy())
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.comment = origin_text().encode()
        array.write_bytes(buffer.getvalue())
        return grid, singles, gif, array


def most_steps(model: Model) -> int:
    """Return the largest number of steps that the page allows: for a student, those that it was made for."""
    return model.student.steps if model.student else min(MOST_STEPS, model.diffusion.schedule.timesteps)


def sampler_info(model: Model) -> str:
    """Return the line that explains the choice of a sampler."""
    return "How noise is removed." + ("" if model.student else " dpm++sde needs few steps.")


def most_images(model: Model) -> int:
    """Return the largest number of images that the page allows: fewer if images are large."""
    return min(MOST_IMAGES, 4 * model.default_batch_size)


def sample_live(model: Model, settings: Settings) -> Iterator[Step | Samples]:
    """Sample images; yield steps while they happen, then the samples. Closing the iterator stops the sampler.

    Stop gives the images as they are at that step.
    """
    options = settings.options(model)
    chosen, schedule = find_sampler(options["sampler"]), model.diffusion.schedule
    timesteps = chosen.timesteps(schedule, options["steps"])
    recorder = Recorder(timesteps, schedule.log_snr, "reverse", frames=GIF_FRAMES)

    def work(callback: Callback) -> Samples:
        images = model.sample(**options, callback=recording(recorder, callback))
        return Samples(images, Trajectory(recorder.frames, images))

    with closing(live(work)) as events:
        try:
            yield from events
        except Cancelled as end:
            if (step := end.step) is None:
                raise
            last = Frame("reverse", step.t, schedule.log_snr(step.t), as_grid(step.x_t), as_grid(step.x_0))
            earlier = [frame for frame in recorder.frames if frame.t > step.t]
            yield Samples(step.x_t.clamp(-1, 1), Trajectory([*earlier, last], step.x_t), stopped=step)


def tiles(images: Tensor, names: Sequence[str], settings: Settings, *, passing: bool = False, stopped: str = "") -> str:
    """Return the HTML of a gallery: one button per image, with its class `names[i]` (may be empty) and its seed.

    passing: drawn while a slider moves; the history keeps the last of such galleries. stopped: where the run ended.
    """
    buttons, about = [], f' data-stopped="{stopped}"' if stopped else " data-passing" * passing
    for index, (pixels, name) in enumerate(zip(to_uint8(images), names, strict=True)):
        said = [f"image {index}", f"class {name}" if name else "", f"seed {settings.seed}", stopped]
        caption = ", ".join(filter(None, said))
        buttons.append(tile(pixels, caption, f"seed{settings.seed}_{index:06d}.png", name, index=index))
    told = escape(json.dumps(asdict(settings)))
    style = f"--columns:{columns(len(images))}"
    return f'<div class="tiles" data-settings="{told}"{about} style="{style}">{"".join(buttons)}</div>'


def drawing(step: Step, log_snr: float, names: Sequence[str]) -> str:
    """Return the HTML of images that are being drawn, where the gallery will be: x_t, and x_0 if the visitor asks."""
    number, (height, width) = len(step.x_t), step.x_t.shape[-2:]
    across, down, gap = sheet_layout(number, columns(number))
    sizes = [(width, across), (height, down)]
    scale = " ".join(f"{100 * (count * (size + gap) + gap) / size:.4f}%" for size, count in sizes)

    def place(index: int) -> str:
        """Return where the picture of all images lies behind one tile, as `background-position`."""
        shares = []
        for (size, count), at in zip(sizes, (index % across, index // across), strict=True):
            rest = count * (size + gap) + gap - size
            shares.append(100 * (gap + at * (size + gap)) / rest if rest else 0)
        return " ".join(f"{share:.4f}%" for share in shares)

    tiles = "".join(
        f'<div class="spot" style="background-position:{place(index)}">{f"<span>{escape(name)}</span>" if name else ""}'
        f"</div>"
        for index, name in enumerate(names)
    )
    noisy, clean = (sheet(images, across) for images in (step.x_t, step.x_0))
    style = f"--columns:{across};--noisy:url({noisy});--clean:url({clean});--scale:{scale};--shape:{width}/{height}"
    return (
        f'<figure class="tiles drawing" role="img" aria-label="{number} images, from noise" style="{style}">{tiles}'
        f"</figure>{progress(step, log_snr)}"
    )


def steps_of(samples: Samples) -> str:
    """Return the HTML of a slider over t, which shows the moments of a run on the tiles above it."""
    frames = samples.trajectory.frames
    chosen = sorted({round(place) for place in np.linspace(0, len(frames) - 1, min(len(frames), FILM_FRAMES))})
    return film(shots([frames[index] for index in chosen]), last=True, tiles=True)


def columns(number: int) -> int:
    """Return the columns of a gallery: full rows if there is a way, about as many as there are rows."""
    square = math.ceil(math.sqrt(number))
    return next((count for count in range(square, min(number, 2 * square) + 1) if number % count == 0), square)


def class_names(model: Model, settings: Settings) -> list[str]:
    """Return the class of each image; empty for a model without classes."""
    known = model.class_names or [""]
    return [
        settings.label if model.class_names and settings.label != EVERY_CLASS else known[index % len(known)]
        for index in range(settings.number)
    ]


def as_command(name: str, options: dict[str, Any], out: str = "samples.png") -> str:
    """Return the command that writes the same grid."""
    flags = [f"--{flag.replace('_', '-')} {shlex.quote(str(value))}" for flag, value in options.items()]
    return " \\\n    ".join([f"ddpm sample {shlex.quote(name)}", *in_lines([*flags, f"--out {out}"])])


def as_python(name: str, options: dict[str, Any]) -> str:
    """Return the Python program that writes the same grid."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return (
        f"import ddpm\n\nmodel = ddpm.load({name!r})\nimages = model.sample({arguments})\n"
        'ddpm.save_grid(images, "samples.png")'
    )


def in_lines(flags: list[str], most: int = 44) -> list[str]:
    """Join flags into lines that fit a narrow page without scrolling."""
    lines = [flags[0]]
    for flag in flags[1:]:
        if len(lines[-1]) + len(flag) < most:
            lines[-1] += f" {flag}"
        else:
            lines.append(flag)
    return lines


def has_guidance(model: Model) -> bool:
    """Whether guidance works: the model knows classes, and also images without one."""
    return model.class_names is not None and model.null_label is not None


def is_quick(model: Model, settings: Settings) -> bool:
    """Whether a drawing takes a few seconds at most, so that the page may begin with it unasked."""
    if not isinstance(model.network, UNet):
        return False
    cost = settings.number * settings.steps * count_flops(model.network)
    return cost <= QUICK_FLOPS * (1 if model.device.type == "cpu" else 100)


def usual(model: Model) -> Settings:
    """Return the settings that the page opens with."""
    own = SamplingOptions().resolved(model)
    # a student may have learnt its teacher's guidance
    guidance = USUAL_GUIDANCE if has_guidance(model) and not model.student else 1.0
    steps = min(own.steps or 1, most_steps(model))
    most = Settings(EVERY_CLASS, own.sampler or DEFAULT_SAMPLER, steps, guidance, 0, min(16, most_images(model)))
    fewer = (replace(most, number=number) for number in (most.number, 9, 4, 1) if number <= most.number)
    return next((settings for settings in fewer if is_quick(model, settings)), most)


def tab(model: Model, name: str, page: gr.Blocks) -> list[Any]:
    """Build the tab and connect its events; endpoint /generate. Return the settings that are not in the address."""
    has_classes, first = model.class_names is not None, usual(model)
    choices = [EVERY_CLASS, *(model.class_names or [])]
    chips = {EVERY_CLASS: "all"} if len(choices) <= MOST_CHIPS else None
    kept: list[Samples] = []  # the first drawing, for those who open the page later
    with gr.Row(elem_classes=["room", "result-first", *(["follows"] if model.student else [])]):
        with gr.Column(scale=2, min_width=280, elem_classes="controls"):
            label = choice(choices, EVERY_CLASS, "Class", visible=has_classes, chips=chips)
            guidance = slider(
                0, 8, first.guidance, step=0.1, label="Guidance", visible=has_guidance(model),
                info="More typical of the class, less varied. 1 is off.",
            )  # fmt: skip
            steps = slider(1, most_steps(model), first.steps, step=1, label="Steps",
                           info="More is slower, and often finer.")  # fmt: skip
            number = slider(1, most_images(model), first.number, step=1, label="Images")
            sampler = choice(list(SAMPLERS), first.sampler, "Sampler", sampler_info(model))
            with gr.Row(elem_classes="seed"):
                seed = seed_field(SEED_INFO, min_width=150)
                dice = gr.Button("New seed", size="sm", min_width=90, scale=0)
            again = gr.Checkbox(True, label="A new seed at each press")
            follows = gr.Checkbox(True, label="Draw at once when something changes", visible=model.student is not None)
            pressed = buttons("Generate")
        with gr.Column(scale=3, min_width=300):
            outcome = Outcome("generate", "Press Generate.", FILES, classes=choices, model=name)
    outcome.code()
    told = gr.HTML(
        html_template="<span hidden></span>", js_on_load="ddpm.settings(element, props, trigger); // 'submit'"
    )

    def checked(*values):
        """Return settings that are in bounds, and the arguments of `Model.sample`."""
        settings = Settings(*values)
        options = settings.options(model)
        return replace(settings, steps=options["steps"], seed=options["seed"], number=options["num"]), options

    def generate(label, sampler, steps, guidance, seed, number):
        settings, options = checked(label, sampler, steps, guidance, seed, number)
        yield running("Starting …"), "", *outcome.unfinished
        began = time.monotonic()
        for event in sample_live(model, settings):
            if isinstance(event, Step):
                pictures = drawing(event, model.diffusion.schedule.log_snr(event.t), class_names(model, settings))
                yield pace(event, began), pictures, *outcome.unfinished
            elif event.stopped:
                yield unfinished(event, settings)
            else:
                if settings == first and not kept:
                    kept.append(event)
                yield from done(event, settings, options)

    def unfinished(samples, settings):
        """Return what there is of a run that was stopped: its images so far, without files and code."""
        where = f"stopped at step {samples.stopped.index + 1} of {samples.stopped.steps}"
        names = class_names(model, settings)
        gallery = tiles(samples.images, names, settings, stopped=where) + steps_of(samples)
        return [f"{where.capitalize()}, seed {settings.seed}.", "", gallery, *outcome.unfinished[1:]]

    def done(samples, settings, options, *, passing=False):
        number, equivalents = len(samples.images), (as_command(name, options), as_python(name, options))
        sampling = SamplingOptions.of(**{key: value for key, value in options.items() if key != "num"}).resolved(model)
        with TempImages() as out:
            with made_by(origin(model, equivalents[0], sampling, images=number)):
                files = [str(path) for path in samples.save(out.folder)]
                names = class_names(model, settings)
                gallery = tiles(samples.images, names, settings, passing=passing) + steps_of(samples)
            images = "1 image" if number == 1 else f"{number} images"
            yield f"Done: {images}, seed {settings.seed}.", "", gallery, *files, *equivalents

    def follow(on, *values):
        """Draw without showing the steps: a student has so few that it keeps up with a slider."""
        if on:
            settings, options = checked(*values)
            *_, samples = sample_live(model, settings)
            yield from done(samples, settings, options, passing=True)
        else:
            yield gr.skip()

    def begin(label, sampler, steps, guidance, seed, number):
        """Draw as soon as the page opens; the usual drawing is done once for all visitors."""
        asked = Settings(label, sampler, steps, guidance, seed, number)
        if asked == first and kept:
            yield from done(kept[0], first, first.options(model))
        elif is_quick(model, asked):
            yield from generate(label, sampler, steps, guidance, seed, number)
        else:
            yield "Press Generate. This model takes a while to draw here.", "", *outcome.unfinished

    fields = [label, sampler, steps, guidance, seed, number]
    names, values = json.dumps(list(asdict(first))), json.dumps(list(asdict(first).values()))
    before = [seed, again], [seed], "(seed, again) => [again ? ddpm.random() : seed]"
    press = connect(pressed, generate, fields, outcome, before=before)
    seed.input(None, None, again, js="() => false", **QUIET)  # who types a seed wants that one
    rolled = dice.click(None, None, seed, js="() => ddpm.random()", **QUIET)
    if model.student:
        saying = [follows, outcome.status], outcome.status
        own = {"concurrency_id": "model", "trigger_mode": "always_last", **QUIET}
        sliders = [number.input, steps.input, guidance.input, seed.input, label.input, sampler.input]
        gr.on([*sliders, dice.click], None, *saying, js=f"(on, now) => on ? {json.dumps(LIVE)} : now", **QUIET)
        for run in (
            gr.on(sliders, show_user_errors(follow), [follows, *fields], outcome.outputs, **own),
            rolled.then(show_user_errors(follow), [follows, *fields], outcome.outputs, **own),
        ):
            outcome.keep(run)
    elif is_quick(model, first):
        label.input(None, None, None, js="() => ddpm.press()", **QUIET)
    filled, all_names = [*fields, again, outcome.status], json.dumps([*asdict(first), "again", "status"])
    told.submit(None, [told, *filled], filled, js=f"(text, ...own) => ddpm.fields(text, {all_names}, own)", **QUIET)
    ranges = {"steps": steps, "guidance": guidance, "number": number}
    limits: dict[str, list[Any]] = {"label": choices, "sampler": list(SAMPLERS), "seed": [0, MOST_SEED]}
    limits |= {field: [each.minimum, each.maximum] for field, each in ranges.items()}
    script = f"() => ddpm.opened({json.dumps(WAITING)}, {names}, {values}, {json.dumps(limits)})"
    opened = page.load(None, None, [press, outcome.status, *fields], js=script, **QUIET)
    run_after(opened, begin, press, fields, outcome)
    return [again, follows]
