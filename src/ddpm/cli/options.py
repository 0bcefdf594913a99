"""The flags that several verbs have, and what is read from them in the same way."""

from typing import Annotated, Any

import typer

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.model import Model
from ddpm.samplers.denoiser import Clip

MODEL_HELP = "'digits', a run directory, a Diffusers folder, or a Hub id"
# For every parameter that is a path: shells leave the tilde in --out=~/run, and a folder called ~ is nobody's wish.
PATH: dict[str, Any] = {"parser": user_path, "metavar": "PATH"}

Labels = Annotated[str | None, typer.Option(help="classes taken in turn: 3, or 0,1,2, or names, or all")]
Guidance = Annotated[float, typer.Option(help="classifier-free guidance; 1 is off, 0 unconditional")]
Sampler = Annotated[str, typer.Option(help="ancestral, ddim, dpm++, dpm++sde, unipc or heun")]
Steps = Annotated[int, typer.Option(help="sampling steps")]
Spacing = Annotated[
    str | None, typer.Option(help="trailing, leading, uniform, quadratic or log_snr; default: the sampler's own")
]
Eta = Annotated[float | None, typer.Option(min=0, max=1, help="ddim only: 0 deterministic, 1 as noisy as ancestral")]
ClipName = Annotated[str, typer.Option(help="limits on the predicted x_0: static, dynamic or none")]
Seed = Annotated[int, typer.Option(help="image i of a seed is always the same image")]
PrecisionName = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32")]
Overwrite = Annotated[bool, typer.Option(help="replace what is there")]


def usual_steps(model: Model) -> int:
    """Sampling steps where none are asked for: 20, or all there are."""
    return min(20, model.diffusion.schedule.timesteps)


def parse_clip(text: str) -> Clip:
    """`static`, `dynamic` or `none`."""
    match text:
        case "static" | "dynamic":
            return text
        case "none":
            return None
    raise UserError(f"--clip takes static, dynamic or none, not {text!r}")
