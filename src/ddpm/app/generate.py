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

from ddpm.app.components import MOST_SEED, TempImages, bounded, enlarged, live, show_user_errors
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
    """Sampled images, float (N, C, H, W) in [-1, 1], and their trajectory."""

    images: Tensor
    trajectory: Trajectory

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write samples.png (a grid), samples.gif (the denoising) and samples.npz (`arr_0`, uint8, N,H,W,C)."""
        grid, gif, array = (folder / f"samples.{ending}" for ending in ("png", "gif", "npz"))
        save_grid(self.images, grid)
        self.trajectory.save(gif)
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=to_uint8(self.images).permute(0, 2, 3, 1).numpy())
        array.write_bytes(buffer.getvalue())
        return grid, gif, array


def most_steps(model: Model) -> int:
    """Return the largest number of steps that the page allows."""
    return min(MOST_STEPS, model.diffusion.schedule.timesteps)


def most_images(model: Model) -> int:
    """Return the largest number of images that the page allows: fewer if images are large."""
    return min(MOST_IMAGES, 4 * model.default_batch_size)


def sample_live(model: Model, settings: Settings) -> Iterator[Step | Samples]:
    """Sample images; yield steps while they happen, then the samples. Closing the iterator stops the sampler."""
    options = settings.options(model)
    chosen, schedule = find_sampler(options["sampler"]), model.diffusion.schedule
    timesteps = chosen.timesteps(schedule, options["steps"])
    recorder = Recorder(timesteps, schedule.log_snr, "reverse", frames=GIF_FRAMES)
    record = recording(recorder)

    def work(callback: Callback) -> Samples:
        def on_step(step: Step) -> None:
            record(step)
            callback(step)

        images = model.sample(**options, callback=on_step)
        return Samples(images, Trajectory(recorder.frames, images))

    return live(work)


def step_picture(model: Model, step: Step) -> Image.Image:
    """Draw x_t next to the predicted x_0 with t, the SNR and the progress, as in the GIF."""
    log_snr = model.diffusion.schedule.log_snr(step.t)
    frame = Frame("reverse", step.t, log_snr, as_grid(step.x_t), as_grid(step.x_0))
    return picture(frame, progress=(step.index + 1) / step.steps)


def as_command(name: str, options: dict[str, Any]) -> str:
    """Return the command that writes the same grid."""
    flags = [f"--{flag.replace('_', '-')} {shlex.quote(str(value))}" for flag, value in options.items()]
    return " \\\n    ".join([f"ddpm sample {shlex.quote(name)}", *_lines(flags), "--out samples.png"])


def as_python(name: str, options: dict[str, Any]) -> str:
    """Return the Python program that writes the same grid."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return (
        f"import ddpm\n\nmodel = ddpm.load({name!r})\nimages = model.sample({arguments})\n"
        'ddpm.save_grid(images, "samples.png")'
    )


def _lines(flags: list[str], most: int = 60) -> list[str]:
    """Join flags into lines that fit a narrow page without scrolling."""
    lines = [flags[0]]
    for flag in flags[1:]:
        if len(lines[-1]) + len(flag) < most:
            lines[-1] += f" {flag}"
        else:
            lines.append(flag)
    return lines


def tab(model: Model, name: str) -> None:
    """Build the tab and connect its events; endpoint /generate."""
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
                allow_custom_value=True,  # programs can send any text; our own check refuses it with a message
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

    @show_user_errors
    def generate(label, sampler, steps, guidance, seed, number):
        settings = Settings(label, sampler, steps, guidance, seed, number)
        options = settings.options(model)
        equivalents = (as_command(name, options), as_python(name, options))
        unfinished = [*[None] * 3, *equivalents]  # not gr.skip(): each one leaves a component behind in the session
        yield "Starting …", None, *unfinished
        for event in sample_live(model, settings):
            if isinstance(event, Step):
                message = f"Step {event.index + 1} of {event.steps}: x_t, and the predicted x_0."
                with TempImages() as out:
                    yield message, out.put(step_picture(model, event)), *unfinished
            else:
                with TempImages() as out:
                    grid = out.put(enlarged(as_grid(event.images), 640))
                    files = [str(path) for path in event.save(out.folder)]
                    yield f"Done: {len(event.images)} images, seed {seed}.", grid, *files, *equivalents

    run = start.click(
        generate,
        [label, sampler, steps, guidance, seed, number],
        [status, samples, png, gif, npz, command, python],
        api_name="generate",
        concurrency_id="model",
        trigger_mode="multiple",  # otherwise a press just after Cancel is lost, because Gradio still counts the old run
        show_progress="hidden",
    )
    cancelled = cancel.click(None, cancels=run)
    cancelled.then(lambda: "Cancelled.", None, status, queue=False, api_visibility="private", show_progress="hidden")
