"""`ddpm convert`: make a model folder of weights of another age or maker."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import PATH


class Format(StrEnum):
    """Formats that can be written: Diffusers' pipeline folder, which is ours too."""

    diffusers = "diffusers"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="a run directory, a model folder, a Hub id, or weights of Diffusers or improved-/guided-diffusion "
            "(.bin, .pt, .ckpt: opened as tensors only)"
        ),
    ],
    destination: Annotated[Path, typer.Argument(**PATH, help="the folder to write")],
    to: Annotated[Format, typer.Option(help="what to write")] = Format.diffusers,
    flags: Annotated[
        str | None,
        typer.Option(help="improved-/guided-diffusion: their script's flags, '--image_size 64 --num_head_channels 64'"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the model folder that is there")] = False,
) -> None:
    """Convert a model to a Diffusers pipeline folder (safetensors), which ddpm opens as well."""
    from ddpm.interop import convert as conversion
    from ddpm.interop.diffusers_config import obstacle

    found = locate(source)
    origin = source if on_the_hub(source) else None  # where a folder lies here says nothing elsewhere
    parts = conversion.convert(found, destination, origin=origin, flags=flags, overwrite=overwrite)
    parameters = sum(parameter.numel() for parameter in parts.network.parameters())
    channels, height, width = parts.image_shape
    print(f"{destination}: {parameters:,} parameters, {height}×{width} images of {channels} channels")
    reason = obstacle(parts.network)
    if reason:
        print(f"UNet2DModel cannot express it ({reason}): only ddpm opens it")


def locate(source: str) -> Path:
    """Where the weights lie: as for `ddpm.load`, but a file will do, and the Hub's pickled weights."""
    from ddpm.interop import hub
    from ddpm.model import find_model

    if Path(source).is_file():
        return Path(source)
    return hub.download(source, pickled=True) if on_the_hub(source) else find_model(source)


def on_the_hub(source: str) -> bool:
    """Whether `source` names a model of the Hub, and nothing that is here."""
    from ddpm.interop import hub
    from ddpm.model import BUNDLED

    return not Path(source).exists() and source not in BUNDLED and hub.looks_like_id(source)
