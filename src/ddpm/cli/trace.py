"""`ddpm trace`: watch the reverse process of a model, the forward process of an image, or one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddpm.cli.options import (
    MODEL_HELP,
    PATH,
    ClipName,
    Eta,
    Guidance,
    Labels,
    Overwrite,
    PrecisionName,
    Sampler,
    Seed,
    Spacing,
    parse_clip,
)
from ddpm.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


LARGEST_FORWARD = 512  # pixels a side; without a model an image keeps its size up to this


def trace(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    forward: Annotated[
        Path | None,
        typer.Option(**PATH, help="an image to turn into noise; MODEL then starts from that noise"),
    ] = None,
    num: Annotated[int, typer.Option(help="how many images, seen as a grid")] = 1,
    labels: Labels = None,
    guidance: Guidance = 1.0,
    sampler: Sampler = "ancestral",
    steps: Annotated[int | None, typer.Option(help="sampling steps; default: 100, or all there are")] = None,
    spacing: Spacing = None,
    eta: Eta = None,
    clip: ClipName = "static",
    seed: Seed = 0,
    precision: PrecisionName = "auto",
    schedule: Annotated[
        str, typer.Option(help="without MODEL: linear, quadratic, cosine, sigmoid or constant")
    ] = "linear",
    timesteps: Annotated[int, typer.Option(min=2, help="without MODEL: T")] = 1000,
    frames: Annotated[int | None, typer.Option(min=2, help="frames to show; default: 60, or 10 in a strip")] = None,
    frame_spacing: Annotated[str, typer.Option(help="frames evenly over the steps (uniform) or log_snr")] = "uniform",
    fps: Annotated[float, typer.Option(help="frames a second")] = 15.0,
    hold: Annotated[float, typer.Option(help="seconds for which the last frame stands still")] = 2.0,
    columns: Annotated[int | None, typer.Option(min=1, help="columns of the grid")] = None,
    out: Annotated[Path, typer.Option(**PATH, help="NAME.gif, NAME.mp4, or NAME.png: a strip")] = Path("trace.gif"),
    overwrite: Overwrite = False,
) -> None:
    """Watch the denoising, the noising, or both."""
    from ddpm.diffusion.schedule import NoiseSchedule, make_betas
    from ddpm.editing.images import read_fitted
    from ddpm.model import load
    from ddpm.plotting.animation import check_animation
    from ddpm.plotting.trace import trace_forward, trace_model

    check_animation(out, fps=fps, hold=hold, overwrite=overwrite)
    shown = {"frames": frames or (10 if out.suffix.lower() == ".png" else 60), "frame_spacing": frame_spacing}
    if model is None:
        if forward is None:
            raise UserError("nothing to trace: give a MODEL, or --forward IMAGE, or both")
        diffusion = NoiseSchedule(make_betas(schedule, timesteps))
        trajectory = trace_forward(diffusion, prepared(forward), seed=seed, **shown)
    else:
        loaded = load(model)
        trajectory = trace_model(
            loaded,
            image=None if forward is None else read_fitted(forward, loaded)[0],
            num=num,
            labels=labels,
            guidance=guidance,
            sampler=sampler,
            steps=steps,
            spacing=spacing,
            clip=parse_clip(clip),
            seed=seed,
            precision=precision,
            columns=columns,
            **shown,
            **({} if eta is None else {"eta": eta}),
        )
    print(trajectory.save(out, fps=fps, hold=hold, overwrite=overwrite))


def prepared(path: Path) -> Tensor:
    """The image file in [-1, 1], at its own size if that is not large."""
    from PIL import Image

    from ddpm.common.pixels import to_float, to_pillow
    from ddpm.data.images import read_image, to_tensor

    image = to_pillow(read_image(path, 3))
    image.thumbnail((LARGEST_FORWARD, LARGEST_FORWARD), Image.Resampling.LANCZOS)
    return to_float(to_tensor(image))
