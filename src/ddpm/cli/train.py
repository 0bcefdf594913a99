"""`ddpm train`: train or fine-tune a model, or go on with a run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm.cli.options import PATH
from ddpm.common.errors import UserError
from ddpm.common.hardware import process_rank
from ddpm.evaluation.training_eval import training_evaluator
from ddpm.training import Config, load_config
from ddpm.training import train as run_training
from ddpm.training.dry_run import dry_run

# Every field of a configuration is a flag, so Click is told to leave those it does not know to `parse_overrides`.
CONTEXT = {"ignore_unknown_options": True, "allow_extra_args": True}


def train(
    context: typer.Context,
    preset: Annotated[str | None, typer.Argument(help="a preset (see `ddpm presets`) or a YAML file")] = None,
    data: Annotated[str | None, typer.Option(help="SOURCE: a name, hf:user/set, or a path")] = None,
    out: Annotated[Path | None, typer.Option(**PATH, help="run directory; default runs/PRESET")] = None,
    init: Annotated[str | None, typer.Option(help="fine-tune this model")] = None,
    resume: Annotated[Path | None, typer.Option(**PATH, help="go on with the run in this directory")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="say what the run would cost, and stop")] = False,
    overwrite: Annotated[bool, typer.Option(help="begin afresh where --out holds a run")] = False,
) -> None:
    """Train a model. Any field of the configuration is a flag: --training.steps 1000 --network.attention [16, 8]."""
    # Click takes the first word it does not know for the preset, be it a flag or not
    positional, overrides = parse_words([*([preset] if preset else []), *context.args])
    preset = positional[0] if positional else None
    if data is not None:
        overrides["data.source"] = data
    if resume is not None:
        if preset is not None or out is not None or init is not None or overwrite:
            raise UserError("--resume takes everything from the run: give no preset, --out, --init or --overwrite")
        config, folder = resumed(resume, overrides), resume
    elif preset is None:
        raise UserError("name a preset or a YAML file (ddpm presets lists them), or --resume a run")
    else:
        config, folder = load_config(preset, overrides), out or Path("runs") / Path(preset).stem
    first = process_rank()[0] == 0
    if dry:
        page = dry_run(config, init=init)
        if first:
            print(page)
        return
    evaluator = training_evaluator(config.data) if config.training.evaluate_every else None
    run_training(config, folder, init=init, resume=resume is not None, overwrite=overwrite, evaluator=evaluator)
    if first:
        print(folder)


def resumed(run: Path, overrides: dict[str, Any]) -> Config:
    """A run's own configuration; only how it is trained, and where its data lie, may change on the way."""
    for name in overrides:
        if not name.startswith("training.") and name != "data.source":
            raise UserError(f"--{name} cannot change in a run that goes on; only training.* and --data can")
    if not (run / "config.yaml").is_file():
        raise UserError(f"no run in {run} to go on with: it has no config.yaml")
    return load_config(run / "config.yaml", overrides)


def parse_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The preset (or nothing) and every `--section.field VALUE` or `--section.field=VALUE`, from words in any order."""
    positional: list[str] = []
    overrides: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(r"--([A-Za-z_]\w*\.\w+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            if word.startswith("-") or positional:
                raise UserError(f"{word!r} is not understood: there is one preset, and flags are --section.field VALUE")
            positional.append(word)
            continue
        name, value = match.groups()
        if value is None:
            if not rest or _is_flag(rest[0]):
                raise UserError(f"--{name} needs a value, as in --training.steps 1000")
            value = rest.pop(0)
            while value.count("[") > value.count("]") and rest and not _is_flag(rest[0]):  # [16, 8] without quotes
                value += " " + rest.pop(0)
        overrides[name] = value
    return positional, overrides


def _is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]", word) is not None
