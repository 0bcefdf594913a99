"""The Generate tab: sample images and watch the denoising."""

import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from torch import Tensor

from ddpm.app.components import MOST_SEED, Outbox, bounded, enlarged, live, told
from ddpm.common.pixels import save_grid, to_uint8
from ddpm.model import Model
from ddpm.plotting.animation import Frame, Recorder, Trajectory, as_grid, picture
from ddpm.plotting.trace import recording
from ddpm.samplers import DEFAULT_SAMPLER, SAMPLERS, Callback, Step, find_sampler

MOST_IMAGES, MOST_STEPS = 64, 1000
GIF_FRAMES = 40
EVERY_CLASS = "every class in turn"


@dataclass(frozen=True)
class Settings:
    """What the Generate tab asks for; `label` is a class name or `EVERY_CLASS`."""

    label: str = EVERY_CLASS
    sampler: str = DEFAULT_SAMPLER
    steps: int = 20
    guidance: float = 1.0
    seed: int = 0
    number: int = 16

    def options(self, model: Model) -> dict[str, Any]:
        """As `Model.sample` takes them, within the page's bounds; UserError otherwise.

        One forward pass holds all images and no padding: a page is for few of them, and soon.
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
class Drawn:
    """The images, float (N, C, H, W) in [-1, 1], and how they came about."""

    images: Tensor
    trajectory: Trajectory

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write samples.png (a grid), samples.gif (the way there) and samples.npz (`arr_0`, uint8, N,H,W,C)."""
        grid, gif, array = (folder / f"samples.{ending}" for ending in ("png", "gif", "npz"))
        save_grid(self.images, grid)
        self.trajectory.save(gif)
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=to_uint8(self.images).permute(0, 2, 3, 1).numpy())
        array.write_bytes(buffer.getvalue())
        return grid, gif, array


def most_steps(model: Model) -> int:
    """The page's longest run."""
    return min(MOST_STEPS, model.diffusion.schedule.timesteps)


def most_images(model: Model) -> int:
    """The page's largest grid: fewer where images are large."""
    return min(MOST_IMAGES, 4 * model.default_batch_size)


def generate(model: Model, settings: Settings) -> Iterator[Step | Drawn]:
    """Draw images: yields steps as they are done, and at last what was drawn. Closing it stops the sampler."""
    options = settings.options(model)
    chosen, schedule = find_sampler(options["sampler"]), model.diffusion.schedule
    timesteps = chosen.timesteps(schedule, options["steps"])
    recorder = Recorder(timesteps, schedule.log_snr, "reverse", frames=GIF_FRAMES)
    record = recording(recorder)

    def draw(callback: Callback) -> Drawn:
        def seen(step: Step) -> None:
            record(step)
            callback(step)

        images = model.sample(**options, callback=seen)
        return Drawn(images, Trajectory(recorder.frames, images))

    return live(draw)


def step_picture(model: Model, step: Step) -> Image.Image:
    """x_t beside the predicted x_0, with t, SNR and how far it is, as in the GIF."""
    log_snr = model.diffusion.schedule.log_snr(step.t)
    frame = Frame("reverse", step.t, log_snr, as_grid(step.x_t), as_grid(step.x_0))
    return picture(frame, progress=(step.index + 1) / step.steps)


def as_command(name: str, options: dict[str, Any]) -> str:
    """The command that writes the same grid."""
    flags = [f"--{flag.replace('_', '-')} {shlex.quote(str(value))}" for flag, value in options.items()]
    return " \\\n    ".join([f"ddpm sample {shlex.quote(name)}", *_lines(flags), "--out samples.png"])


def as_python(name: str, options: dict[str, Any]) -> str:
    """The program that writes the same grid."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return (
        f"import ddpm\n\nmodel = ddpm.load({name!r})\nimages = model.sample({arguments})\n"
        'ddpm.save_grid(images, "samples.png")'
    )


def _lines(flags: list[str], most: int = 60) -> list[str]:
    """Flags gathered into lines that a narrow page shows without scrolling."""
    lines = [flags[0]]
    for flag in flags[1:]:
        if len(lines[-1]) + len(flag) < most:
            lines[-1] += f" {flag}"
        else:
            lines.append(flag)
    return lines


def tab(model: Model, name: str) -> None:
    """Lay the tab out and connect it; endpoint /generate."""
    has_classes = model.class_names is not None
    most = most_steps(model)
    guided = has_classes and model.null_label is not None
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            label = gr.Dropdown(
                [EVERY_CLASS, *(model.class_names or [])],
                value=EVERY_CLASS,
                label="Class",
                visible=has_classes,
                allow_custom_value=True,  # so that what programs send is judged, and refused in words
            )
            with gr.Row():
                sampler = gr.Dropdown(list(SAMPLERS), value=DEFAULT_SAMPLER, label="Sampler", min_width=120)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
            steps = gr.Slider(1, most, min(20, most), step=1, label="Steps")
            number = gr.Slider(1, most_images(model), min(16, most_images(model)), step=1, label="Images")
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
        settings = Settings(label, sampler, steps, guidance, seed, number)
        options = settings.options(model)
        equivalents = (as_command(name, options), as_python(name, options))
        unfinished = [*[None] * 3, *equivalents]  # no gr.skip(): each would leave a component behind in the session
        yield "Starting …", None, *unfinished
        for event in generate(model, settings):
            if isinstance(event, Step):
                told_step = f"Step {event.index + 1} of {event.steps}: x_t, and the x_0 that is predicted from it."
                with Outbox() as out:
                    yield told_step, out.put(step_picture(model, event)), *unfinished
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
