"""`ddpm trace`: animate the reverse process of a model, the forward process of an image, or both in turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ddpm.cli.options import MODEL_HELP, PATH, Metadata, Overwrite, complete_model, origin, sampling_flags, step_bar
from ddpm.common.errors import UserError
from ddpm.common.names import ScheduleName

if TYPE_CHECKING:
    from torch import Tensor

MAX_FORWARD_SIDE = 512  # pixels; without a model, an image keeps its size up to this


@sampling_flags(steps=100, sampler="ancestral", without=["batch_size"])  # all images are one batch
def trace(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP, autocompletion=complete_model)
    ] = None,
    forward: Annotated[
        Path | None, typer.Option(**PATH, help="an image to turn into noise; MODEL then starts from that noise")
    ] = None,
    num: Annotated[int, typer.Option(help="number of images, shown as a grid")] = 1,
    *,
    sampling: dict[str, Any],
    schedule: Annotated[str, typer.Option(help=f"without MODEL: {', '.join(get_args(ScheduleName))}")] = "linear",
    timesteps: Annotated[int, typer.Option(min=2, help="without MODEL: T")] = 1000,
    frames: Annotated[int | None, typer.Option(min=2, help="number of frames; default: 60, or 10 in a strip")] = None,
    frame_spacing: Annotated[str, typer.Option(help="uniform (over the steps) or log_snr")] = "uniform",
    fps: Annotated[float, typer.Option(help="frames per second")] = 15.0,
    hold: Annotated[float, typer.Option(help="seconds to hold the last frame")] = 2.0,
    columns: Annotated[int | None, typer.Option(min=1, help="columns of the grid")] = None,
    out: Annotated[Path, typer.Option(**PATH, help="NAME.gif, NAME.mp4, or NAME.png: a strip")] = Path("trace.gif"),
    overwrite: Overwrite = False,
    metadata: Metadata = True,
) -> None:
    """Animate denoising, noising, or both."""
    from ddpm.common.pixels import made_by
    from ddpm.diffusion.schedule import NoiseSchedule, make_betas
    from ddpm.editing.pictures import read_fitted
    from ddpm.model import load
    from ddpm.plotting.animation import check_animation
    from ddpm.plotting.trace import trace_forward, trace_model
    from ddpm.training.config import visible_signal

    check_animation(out, fps=fps, hold=hold, overwrite=overwrite)
    shown = {"frames": frames or (10 if out.suffix.lower() == ".png" else 60), "frame_spacing": frame_spacing}
    loaded = None
    if model is None:
        if forward is None:
            raise UserError("nothing to trace: give a MODEL, or --forward IMAGE, or both")
        diffusion = NoiseSchedule(make_betas(schedule, timesteps))
        if left := visible_signal(float(diffusion.alphas_cumprod[-1])):
            print(f"note: {left}: use more --timesteps or --schedule cosine")
        trajectory = trace_forward(diffusion, prepared(forward), seed=sampling["seed"], **shown)
    else:
        loaded = load(model)
        image = None if forward is None else read_fitted(forward, loaded)[0]
        with step_bar(num) as callback:
            trajectory = trace_model(
                loaded, image=image, num=num, columns=columns, callback=callback, **shown, **sampling
            )
    with made_by(origin(metadata, loaded, options=sampling, images=num)):
        print(trajectory.save(out, fps=fps, hold=hold, overwrite=overwrite))


def prepared(path: Path) -> Tensor:
    """Return an image file as (3, H, W) in [-1, 1], shrunk if a side exceeds `MAX_FORWARD_SIDE`."""
    from PIL import Image

    from ddpm.common.pixels import to_float, to_pillow
    from ddpm.data.images import read_image, to_tensor

    image = to_pillow(read_image(path, 3))
    image.thumbnail((MAX_FORWARD_SIDE, MAX_FORWARD_SIDE), Image.Resampling.LANCZOS)
    return to_float(to_tensor(image))
