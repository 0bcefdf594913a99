"""The options that several commands share. Command modules import PyTorch only when they run."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import typer

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.common.names import Precision, SamplerName
from ddpm.common.names import Spacing as SpacingName


def complete(words: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Return a shell completion that offers the words that begin as typed."""
    return lambda incomplete: [word for word in words() if word.startswith(incomplete)]


def _presets() -> list[str]:
    from ddpm.training.config import preset_names

    return preset_names()


complete_preset = complete(_presets)

MODEL_HELP = "'digits', a run directory, a Diffusers folder, or a Hub id"
# For every parameter that is a path. Shells leave the tilde in --out=~/run, and it must not create a folder called ~.
PATH: dict[str, Any] = {"parser": user_path, "metavar": "PATH"}

Labels = Annotated[str | None, typer.Option(help="classes that images take in turn: 3, or 0,1,2, or names, or all")]
Guidance = Annotated[float, typer.Option(help="classifier-free guidance; 1 is off, 0 is unconditional")]
Sampler = Annotated[
    str,
    typer.Option(help=", ".join(get_args(SamplerName)), autocompletion=complete(lambda: list(get_args(SamplerName)))),
]
Steps = Annotated[int, typer.Option(help="sampling steps")]
Spacing = Annotated[str | None, typer.Option(help=f"{', '.join(get_args(SpacingName))}; default: the sampler's own")]
Eta = Annotated[float | None, typer.Option(min=0, max=1, help="ddim only: 0 is deterministic, 1 as noisy as ancestral")]
ClipName = Annotated[str, typer.Option(help="clipping of the predicted x_0: static, dynamic or none")]
Seed = Annotated[int, typer.Option(help="image i of a seed is always the same image")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="images per forward pass")]
PrecisionName = Annotated[str, typer.Option(help=f"number format: {', '.join(get_args(Precision))}")]
Overwrite = Annotated[bool, typer.Option(help="replace existing output")]


def parse_clip(text: str) -> Literal["static", "dynamic"] | None:
    """Read `static`, `dynamic` or `none`."""
    match text:
        case "static" | "dynamic":
            return text
        case "none":
            return None
    raise UserError(f"--clip takes static, dynamic or none, not {text!r}")
