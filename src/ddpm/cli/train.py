"""`ddpm train`: train or fine-tune a model, or resume a run."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.shell_completion import CompletionItem
from typer.core import TyperCommand

from ddpm.cli.options import PATH, complete_model, complete_preset, complete_run
from ddpm.common.errors import UserError
from ddpm.distillation.config import StudentConfig
from ddpm.training.config import Config, load_config, overridden, preset_names, read_yaml, validate
from ddpm.training.config import find_file as find_configuration
from ddpm.training.fields import fields, fields_help

# Every field of a configuration is a flag. Click passes on those that it does not know, and `parse_words` reads them.
# Pydantic-settings and tyro would list them in --help too, but they know no presets and refuse [16, 8] without quotes.
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True}
OPTIONS = ["data", "out", "minutes", "init", "resume", "dry_run", "overwrite"]


class TrainCommand(TyperCommand):
    """`ddpm train --help` lists every field, and `ddpm train PRESET --help` the values of that preset."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the flags of the configuration below those of the command."""
        values = {}
        for word in ctx.find_root().obj or []:
            if word in preset_names() or word.endswith((".yaml", ".yml")):
                values = read_yaml(find_configuration(word))
        formatter.write("\nEvery field of the configuration is a flag:\n\n")
        formatter.write(fields_help(values, formatter.width))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the flags of the configuration as well as those of the command."""
        flags = [CompletionItem(field.flag, help=field.description) for field in fields()]
        return super().shell_complete(ctx, incomplete) + [
            flag for flag in flags if incomplete.startswith("-") and flag.value.startswith(incomplete)
        ]


def train(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Argument(help="a preset (`ddpm presets` lists them) or a YAML file", autocompletion=complete_preset),
    ] = None,
    data: Annotated[str | None, typer.Option(help="SOURCE of images: a name, hf:user/set, or a path")] = None,
    out: Annotated[Path | None, typer.Option(**PATH, help="run directory; default: runs/PRESET")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="train for this long on this machine: sets the steps by a short measurement"),
    ] = None,
    init: Annotated[str | None, typer.Option(help="fine-tune this model", autocompletion=complete_model)] = None,
    resume: Annotated[
        Path | None, typer.Option(**PATH, help="resume the run in this directory", autocompletion=complete_run)
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="print what the run would cost, and stop")] = False,
    overwrite: Annotated[bool, typer.Option(help="start a new run even if --out holds one")] = False,
) -> None:
    """Train a model. Example: ddpm train digits --training.steps 1000 --network.attention "[7]" """
    # Click takes the first word that it does not know as the preset, even if it is a flag
    positional, overrides = parse_words([*([preset] if preset else []), *context.args])
    preset = positional[0] if positional else None
    if data is not None:
        overrides["data.source"] = data
    if resume is not None:
        if preset is not None or out is not None or init is not None or minutes is not None or overwrite:
            raise UserError(
                "--resume takes everything from the run: give no preset, --out, --minutes, --init or --overwrite"
            )
        config, folder = resumed(resume, overrides), resume
    elif preset is None:
        raise UserError(
            "give a preset or a YAML file, as in ddpm train folder32 --data FOLDER (`ddpm presets` lists the presets), "
            "or --resume a run"
        )
    else:
        config, folder = load_config(preset, overrides), out or Path("runs") / Path(preset).stem

    from ddpm.common.distributed import is_main
    from ddpm.distillation import distill
    from ddpm.evaluation.training_eval import training_evaluator
    from ddpm.training.dry_run import dry_run, fit_to_minutes
    from ddpm.training.trainer import train as run_training

    if minutes is not None:
        if "training.steps" in overrides:
            raise UserError("--minutes chooses the steps: give one of --minutes and --training.steps")
        config = fit_to_minutes(config, minutes, init=init)
        if is_main():
            print(
                f"{minutes:g} minutes: {config.training.steps:,} steps, warm-up {config.training.warmup:,}, "
                f"ema_decay {config.training.ema_decay:g}",
                flush=True,
            )
    if dry and isinstance(config, StudentConfig):
        raise UserError("--dry-run of a distillation is an option of ddpm distill")
    if dry:
        summary = dry_run(config, init=init)
        if is_main():
            print(summary)
        return
    evaluator = training_evaluator(config.data) if config.training.evaluate_every else None
    if isinstance(config, StudentConfig):
        distill(config, folder, resume=True, evaluator=evaluator)
    else:
        run_training(config, folder, init=init, resume=resume is not None, overwrite=overwrite, evaluator=evaluator)
    if is_main():
        print(folder)


def resumed(run: Path, overrides: dict[str, Any]) -> Config:
    """Return the configuration of a run; only `training.*` and the place of its data may change."""
    for name in overrides:
        if not name.startswith("training.") and name != "data.source":
            raise UserError(f"--{name} cannot change when a run resumes; only training.* and --data can")
    if not (run / "config.yaml").is_file():
        raise UserError(f"no run in {run} to resume: it has no config.yaml")
    tree = overridden(read_yaml(run / "config.yaml"), run / "config.yaml", overrides)
    return validate(tree, StudentConfig if "distillation" in tree else Config)


def parse_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the preset (if any) and the overrides `--section.field VALUE` or `--section.field=VALUE`, in any order.

    A hyphen in a name is read as an underscore.
    """
    positional: list[str] = []
    overrides: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(r"--([A-Za-z_][\w-]*\.[\w-]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            if word.startswith("-"):
                raise UserError(f"there is no option {word}; {suggestion(word)}")
            if positional:
                raise UserError(f"{word!r} is not understood: give one preset, and flags as --section.field VALUE")
            positional.append(word)
            continue
        name, value = match[1].replace("-", "_"), match[2]
        if value is None:
            if not rest or _is_flag(rest[0]):
                raise UserError(f"--{name} needs a value, as in --training.steps 1000")
            value = rest.pop(0)
            while value.count("[") > value.count("]") and rest and not _is_flag(rest[0]):  # [16, 8] without quotes
                value += " " + rest.pop(0)
        overrides[name] = value
    return positional, overrides


def suggestion(word: str) -> str:
    """Return the flags that an unknown one may stand for: `--training.steps` for `--steps`."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    known = [*OPTIONS, *(field.name for field in fields())]
    meant = difflib.get_close_matches(name, known, 1)
    flags = [f"--{option.replace('_', '-')}" for option in OPTIONS if option in meant]
    flags += [field.flag for field in fields() if field.name in meant]
    return f"did you mean {' or '.join(flags)}?" if flags else "`ddpm train --help` lists all options"


def _is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]", word) is not None
