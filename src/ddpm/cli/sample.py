"""`ddpm sample`: sample images from a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import (
    MODEL_HELP,
    PATH,
    BatchSize,
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
from ddpm.common.names import DEFAULT_SAMPLER


def sample(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    num: Annotated[int, typer.Option(help="number of images")] = 16,
    labels: Labels = None,
    guidance: Guidance = 1.0,
    guidance_rescale: Annotated[float, typer.Option(min=0, max=1, help="0 to 1: undo guidance's contrast")] = 0.0,
    sampler: Sampler = DEFAULT_SAMPLER,
    steps: Annotated[int | None, typer.Option(help="sampling steps; default: 20, or T if that is less")] = None,
    spacing: Spacing = None,
    eta: Eta = None,
    clip: ClipName = "static",
    seed: Seed = 0,
    batch_size: BatchSize = None,
    precision: PrecisionName = "auto",
    columns: Annotated[int | None, typer.Option(min=1, help="columns of a grid")] = None,
    out: Annotated[Path, typer.Option(**PATH, help="NAME.png: a grid; NAME.npz: arr_0; else a folder of PNGs")] = Path(
        "samples.png"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Sample images."""
    from ddpm.generate import generate
    from ddpm.model import load

    loaded = load(model)
    generate(
        loaded,
        out,
        num=num,
        overwrite=overwrite,
        columns=columns,
        labels=labels,
        guidance=guidance,
        guidance_rescale=guidance_rescale,
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        clip=parse_clip(clip),
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        eta=eta,
    )
    print(out)
