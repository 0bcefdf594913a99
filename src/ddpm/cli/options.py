"""The options that several commands share. Command modules import PyTorch only when they run."""

import functools
import inspect
import math
import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from ddpm.common.errors import UserError
from ddpm.common.files import is_model, is_run, user_path
from ddpm.common.names import BUNDLED_NAMES, DEFAULT_SAMPLER, DEFAULT_STEPS, Precision, SamplerName
from ddpm.common.names import Spacing as SpacingName


def complete(words: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Return a shell completion that offers the words that begin as typed."""
    return lambda incomplete: [word for word in words() if word.startswith(incomplete)]


def _presets() -> list[str]:
    from ddpm.training.config import preset_names

    return preset_names()


def _runs() -> list[str]:
    return sorted(str(folder) for folder in Path("runs").glob("*") if is_run(folder))


def _models() -> list[str]:
    """Bundled models, runs, and models in the Hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE).glob("models--*--*/snapshots/*")
    ids = {folder.parts[-3].removeprefix("models--").replace("--", "/") for folder in cached if is_model(folder)}
    return [*BUNDLED_NAMES, *_runs(), *sorted(ids)]


complete_preset = complete(_presets)
complete_run = complete(_runs)
complete_model = complete(_models)
complete_sampler = complete(lambda: list(get_args(SamplerName)))
complete_spacing = complete(lambda: list(get_args(SpacingName)))
complete_precision = complete(lambda: list(get_args(Precision)))
complete_clip = complete(lambda: ["static", "dynamic", "none"])

MODEL_HELP = f"{', '.join(map(repr, BUNDLED_NAMES))}, a run directory, a Diffusers folder, or a Hub id"
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=complete_model)]
# For every parameter that is a path. Shells leave the tilde in --out=~/run, and it must not create a folder called ~.
PATH: dict[str, Any] = {"parser": user_path, "metavar": "PATH"}

Labels = Annotated[str | None, typer.Option(help="classes that images take in turn: 3, or 0,1,2, or names, or all")]
GuidanceRescale = Annotated[float, typer.Option(min=0, max=1, help="0 to 1: undo guidance's contrast")]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOWEST HIGHEST", help="noise levels σ between which guidance acts, such as 0.3 5"),
]
Guidance = Annotated[float, typer.Option(help="classifier-free guidance; 1 is off, 0 is unconditional")]
SAMPLERS = ", ".join(f"{name} (the usual one)" if name == DEFAULT_SAMPLER else name for name in get_args(SamplerName))
Sampler = Annotated[str | None, typer.Option(help=SAMPLERS, autocompletion=complete_sampler)]
Spacing = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(get_args(SpacingName))}; default: the sampler's own", autocompletion=complete_spacing
    ),
]
Eta = Annotated[float | None, typer.Option(min=0, max=1, help="ddim only: 0 is deterministic, 1 as noisy as ancestral")]
ClipName = Annotated[
    str, typer.Option(help="clipping of the predicted x_0: static, dynamic or none", autocompletion=complete_clip)
]
Seed = Annotated[int, typer.Option(help="image i of a seed is always the same image")]
BatchSize = Annotated[int | None, typer.Option(help="images per forward pass")]
PrecisionName = Annotated[
    str, typer.Option(help=f"number format: {', '.join(get_args(Precision))}", autocompletion=complete_precision)
]
Overwrite = Annotated[bool, typer.Option(help="replace existing output")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="write into the file how it was made, for `ddpm info`")
]

SAMPLING: dict[str, tuple[Any, Any]] = {  # the fields of `ddpm.SamplingOptions` that are flags, with type and default
    "labels": (Labels, None),
    "guidance": (Guidance, 1.0),
    "guidance_interval": (GuidanceInterval, None),
    "guidance_rescale": (GuidanceRescale, 0.0),
    "sampler": (Sampler, None),
    "steps": (int | None, None),
    "spacing": (Spacing, None),
    "eta": (Eta, None),
    "clip": (ClipName, "static"),
    "seed": (Seed, 0),
    "batch_size": (BatchSize, None),
    "precision": (PrecisionName, "auto"),
}


def sampling_flags(*, steps: int | str = DEFAULT_STEPS, without: Collection[str] = (), **defaults: Any) -> Callable:
    """Replace the parameter `sampling` of a command by a flag for each sampling option.

    The command gets the options as a dictionary for `SamplingOptions`, without those that are None.

    Args:
        steps: the default that the help shows; the command itself fills it in.
        without: options that the command does not have.
        defaults: defaults that differ from those of `SamplingOptions`.
    """
    own = "" if "sampler" in defaults else "; a student has its own steps and sampler"
    count = typer.Option(help=f"sampling steps; default: {steps}, or T if that is less{own}")
    types = {name: kind for name, (kind, _) in SAMPLING.items()} | {"steps": Annotated[int | None, count]}
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=types[name], default=default)
        for name, default in ({name: default for name, (_, default) in SAMPLING.items()} | defaults).items()
        if name not in without
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_flags(**given: Any) -> None:
            sampling = {flag.name: given.pop(flag.name) for flag in flags}
            sampling = {name: value for name, value in sampling.items() if value is not None}
            if "clip" in sampling:
                sampling["clip"] = parse_clip(sampling["clip"])
            command(**given, sampling=sampling)

        signature = inspect.signature(command, eval_str=True)
        parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
        place = list(signature.parameters).index("sampling")
        parameters[place : place + 1] = flags
        with_flags.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_flags

    return decorate


@contextmanager
def step_bar(images: int) -> Iterator[Callable[[Any], None]]:
    """Give a sampler's callback that shows its steps on a terminal, if they take over two seconds.

    images: how many are sampled, in batches.
    """
    from tqdm import tqdm

    done = 0
    with tqdm(desc="steps", unit="step", delay=2, leave=False, disable=None) as bar:

        def callback(step: Any) -> None:
            nonlocal done
            bar.total = math.ceil(images / len(step.x_t)) * step.steps if not done else bar.total
            done += 1
            bar.update()

        yield callback


command_line: ContextVar[list[str]] = ContextVar("command_line")  # the arguments of the command that is running


def origin(metadata: bool, loaded: Any, **more: Any) -> dict[str, Any] | None:
    """Return how the files of the running command are made, for `made_by`; None without --metadata.

    loaded: the model, or None. more: JSON values.
    """
    from ddpm.common.pixels import origin_of

    weights = None if loaded is None else loaded.weights_hash
    return origin_of(shlex.join(["ddpm", *command_line.get([])]), weights, **more) if metadata else None


def parse_clip(text: str) -> Literal["static", "dynamic"] | None:
    """Read `static`, `dynamic` or `none`."""
    match text:
        case "static" | "dynamic":
            return text
        case "none":
            return None
    raise UserError(f"--clip takes static, dynamic or none, not {text!r}")
