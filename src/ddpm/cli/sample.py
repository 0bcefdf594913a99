"""`ddpm sample`: draw images with a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import parse_clip, parse_labels
from ddpm.generation import generate
from ddpm.model import load


def sample(
    model: Annotated[str, typer.Argument(help="'digits', a run directory, a Diffusers folder, or a Hub id")],
    num: Annotated[int, typer.Option(help="how many images")] = 16,
    labels: Annotated[str | None, typer.Option(help="classes taken in turn: 3, or 0,1,2, or names, or all")] = None,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance; 1 is off, 0 unconditional")] = 1.0,
    guidance_rescale: Annotated[float, typer.Option(help="0 to 1: undo guidance's added contrast")] = 0.0,
    sampler: Annotated[str, typer.Option(help="ancestral, ddim, dpm++, dpm++sde, unipc or heun")] = "dpm++",
    steps: Annotated[int, typer.Option(help="sampling steps")] = 20,
    spacing: Annotated[
        str | None, typer.Option(help="trailing, leading, uniform, quadratic or log_snr; default: the sampler's own")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="ddim only: 0 deterministic, 1 as noisy as ancestral")] = None,
    clip: Annotated[str, typer.Option(help="limits on the predicted x_0: static, dynamic or none")] = "static",
    seed: Annotated[int, typer.Option(help="image i of a seed is always the same image")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="images a forward pass")] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32")] = "auto",
    columns: Annotated[int | None, typer.Option(help="columns of the grid")] = None,
    out: Annotated[Path, typer.Option(help="NAME.png: one grid; NAME.npz: arr_0; else a folder of PNGs")] = Path(
        "samples.png"
    ),
    overwrite: Annotated[bool, typer.Option(help="replace what is there")] = False,
) -> None:
    """Draw images."""
    generate(
        load(model),
        out,
        num=num,
        overwrite=overwrite,
        columns=columns,
        labels=parse_labels(labels),
        guidance=guidance,
        guidance_rescale=guidance_rescale,
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        clip=parse_clip(clip),
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        **({} if eta is None else {"eta": eta}),
    )
    print(out)
