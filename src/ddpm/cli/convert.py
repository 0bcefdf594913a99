"""`ddpm convert`: write a model folder from weights of another library or an older version."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import PATH
from ddpm.common.files import user_path


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="a run directory, a model folder, a Hub id, or weights of Diffusers or improved-/guided-diffusion "
            "(.bin, .pt, .ckpt: opened as tensors only)"
        ),
    ],
    destination: Annotated[Path, typer.Argument(**PATH, help="the folder to write")],
    flags: Annotated[
        str | None,
        typer.Option(help="flags of an improved-/guided-diffusion script: '--image_size 64 --num_head_channels 64'"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace an existing model folder")] = False,
) -> None:
    """Convert a model to a Diffusers pipeline folder (safetensors).

    ddpm opens that folder, too.
    """
    from ddpm.interop import convert as conversion
    from ddpm.interop.diffusers_config import obstacle

    found = locate(source)
    origin = source if on_the_hub(source) else None  # a path on this machine means nothing on another
    parts = conversion.convert(found, destination, origin=origin, flags=flags, overwrite=overwrite)
    parameters = sum(parameter.numel() for parameter in parts.network.parameters())
    channels, height, width = parts.image_shape
    kind = f"{height}×{width} images of {channels} channel{'s' * (channels > 1)}"
    print(f"{destination}: {parameters:,} parameters, {kind}")
    reason = obstacle(parts.network)
    if reason:
        print(f"Diffusers cannot open it, only ddpm can: UNet2DModel has no equivalent ({reason})")


def locate(source: str) -> Path:
    """Return the place of the weights. Unlike `ddpm.load`, this accepts a file, and pickled weights on the Hub."""
    from ddpm.interop import hub
    from ddpm.model import find_model

    if user_path(source).is_file():
        return user_path(source)
    return hub.download(source, pickled=True) if on_the_hub(source) else find_model(source)


def on_the_hub(source: str) -> bool:
    """Whether `source` names a model on the Hub, and no local file or bundled model."""
    from ddpm.interop import hub
    from ddpm.model import BUNDLED

    return not user_path(source).exists() and source not in BUNDLED and hub.looks_like_id(source)
