"""`ddpm distill`: train a student that samples in a few steps from a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import MODEL_HELP, PATH
from ddpm.cli.train import parse_words
from ddpm.common.errors import UserError
from ddpm.distillation.config import DEFAULT_METHOD, DistillationConfig, Method


def distill(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=f"the teacher: {MODEL_HELP}")] = None,
    steps: Annotated[int, typer.Option(min=1, help="sampling steps of the student")] = 4,
    teacher_steps: Annotated[
        int | None,
        typer.Option(min=2, help="the teacher's first steps; default: a student's own, or about 64"),
    ] = None,
    method: Annotated[Method, typer.Option(help="how the student is taught")] = DEFAULT_METHOD,
    guidance: Annotated[float, typer.Option(help="guidance of the teacher, which the student learns; 1 is off")] = 1.0,
    data: Annotated[str | None, typer.Option(help="SOURCE of images; default: samples of the teacher")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="train for about so long; default: at most as long as the teacher")
    ] = None,
    out: Annotated[Path | None, typer.Option(**PATH, help="run directory; default: runs/MODEL-STEPS")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="print what the run would cost, and stop")] = False,
    overwrite: Annotated[bool, typer.Option(help="start a new run even if --out holds one")] = False,
) -> None:
    """Distil a model into a student of few steps. Example: ddpm distill digits --steps 4 --data digits

    The fields of the sections `data`, `training` and `network` are flags, as in ddpm train. Resume with
    ddpm train --resume RUN.
    """
    positional, overrides = parse_words([*([model] if model else []), *context.args])
    if not positional:
        raise UserError(f"give the model that teaches: {MODEL_HELP}")
    if minutes is not None and "training.steps" in overrides:
        raise UserError("--minutes and --training.steps both say how long to train: give one of them")
    (name,) = positional
    folder = out or Path("runs") / f"{Path(name).name}-{steps}"

    from ddpm.common.distributed import is_main
    from ddpm.distillation.distiller import OWN_SAMPLES, dry_run, student_config
    from ddpm.distillation.distiller import distill as run_distillation
    from ddpm.evaluation.training_eval import training_evaluator
    from ddpm.model import load

    teacher = load(name)
    settings = DistillationConfig(
        teacher=name, steps=steps, teacher_steps=teacher_steps, method=method, guidance=guidance
    )
    config = student_config(teacher, settings, data or str(folder / OWN_SAMPLES), overrides)
    if dry:
        summary = dry_run(config, folder, teacher)
        if is_main():
            print(summary)
        return
    evaluator = training_evaluator(config.data) if config.training.evaluate_every else None
    run_distillation(config, folder, teacher, minutes=minutes, overwrite=overwrite, evaluator=evaluator)
    if is_main():
        print(folder)
