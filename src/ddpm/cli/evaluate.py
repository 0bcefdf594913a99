"""`ddpm evaluate`: compare a model, or a set of images, with real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.cli.options import PATH, Overwrite, complete_model, sampling_flags
from ddpm.common.errors import UserError
from ddpm.common.files import refuse_existing, user_path
from ddpm.common.names import DEFAULT_SAMPLER, DEFAULT_STEPS

if TYPE_CHECKING:
    from ddpm.evaluation.evaluate import Report
    from ddpm.model import SamplingOptions


METRIC_NAMES = ("fid", "kid", "class_kid", "prdc", "is", "drift", "levels", "cas", "nll", "memorisation")
QUICK_METRICS = ("fid", "kid", "prdc", "is", "drift", "levels")


@sampling_flags(without=["sampler", "steps"])
def evaluate(
    candidate: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="a model, or a folder or .npz of images", autocompletion=complete_model),
    ],
    data: Annotated[str, typer.Option(help="real images: a SOURCE, or an .npz of precomputed mu, sigma, n")],
    metrics: Annotated[
        str | None,
        typer.Option(
            help=f"some of {','.join(METRIC_NAMES)}; default: {','.join(QUICK_METRICS)} (as far as the data allow)"
        ),
    ] = None,
    features: Annotated[str, typer.Option(help="inception, builtin, or a TorchScript file")] = "inception",
    num: Annotated[int | None, typer.Option(help="images to sample from a model; default 10,000")] = None,
    test: Annotated[str | None, typer.Option(help="real images not trained on; default: the data's test split")] = None,
    fit: Annotated[
        str | None, typer.Option(help="resize real images: crop or pad; default: as the model's training data")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help=f"default {DEFAULT_SAMPLER}; with --sweep several, separated by commas")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(help=f"default {DEFAULT_STEPS}; with --sweep network evaluations per image, separated by commas"),
    ] = None,
    *,
    sampling: dict[str, Any],
    force: Annotated[bool, typer.Option(help="compute FID on too few images and mark it as biased")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="plot quality against network evaluations")] = False,
    out: Annotated[Path, typer.Option(**PATH, help="report file (.json); plots are saved as NAME-*.png")] = Path(
        "evaluation.json"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Compare a model, or existing images, with real images. Results are also written to the model card."""
    from ddpm.evaluation.evaluate import evaluate as run_evaluation
    from ddpm.evaluation.metrics import pictures_of
    from ddpm.model import SamplingOptions

    if out.suffix != ".json":
        raise UserError(f"cannot write {out.name}: give a name ending in .json")
    options = SamplingOptions(**sampling)
    common = {"features": features, "num": num, "test": test, "fit": fit, "force": force}
    names = None if metrics is None else split(metrics)
    if sweep:
        save_sweep(candidate, data, options, out, overwrite, names, sampler, steps, common)
        return
    pictures = out.with_suffix("")
    for path in (out, *pictures_of(names, pictures)):
        refuse_existing(path, overwrite)
    given = {"sampler": sampler, "steps": None if steps is None else number("--steps", steps)}
    options = SamplingOptions.of(options, **{name: value for name, value in given.items() if value is not None})
    chosen = None if options == SamplingOptions() else options  # existing images take no sampling options
    report = run_evaluation(candidate, data, chosen, metrics=names, pictures=pictures, **common)
    if report is not None:
        report.save(out)
        print(report.table())
        print(f"written to {out}")
        add_to_card(candidate, report)


def add_to_card(candidate: str, report: Report) -> None:
    """Write the results into the card of a model folder, unless it is a bundled one or in the Hub's cache."""
    from ddpm.interop.card import add_metrics
    from ddpm.model import BUNDLED, find_model, load

    if candidate in BUNDLED or not user_path(candidate).is_dir():
        return
    folder = find_model(candidate)
    if not (folder / "ddpm.json").is_file() or load(folder).weights_hash != report.settings.get("weights"):
        return  # images, or a model that training has replaced in the meantime
    try:
        add_metrics(folder, report.for_card())
    except OSError as error:  # the report is saved; the folder may belong to somebody else
        print(f"but its card, {folder / 'README.md'}, could not be updated: {error.strerror or error}")
    else:
        print(f"and to {folder / 'README.md'}")


def save_sweep(
    candidate: str,
    data: str,
    options: SamplingOptions,
    out: Path,
    overwrite: bool,
    metrics: list[str] | None,
    sampler: str | None,
    steps: str | None,
    common: dict[str, Any],
) -> None:
    """Evaluate one metric for every sampler and number of evaluations: a table, a JSON file and a plot."""
    from ddpm.evaluation.metrics import pictures_of
    from ddpm.evaluation.opening import open_candidate
    from ddpm.evaluation.sweep import default_budgets, point_pictures, save_points, table
    from ddpm.evaluation.sweep import sweep as run_sweep
    from ddpm.model import Model
    from ddpm.plotting.plots import quality, save_figure
    from ddpm.samplers import SAMPLERS

    if metrics is not None and len(metrics) != 1:
        raise UserError("--sweep takes one metric, e.g. --metrics kid")
    model = open_candidate(candidate)
    if not isinstance(model, Model):
        raise UserError(f"--sweep samples from a model, and {candidate} holds images")
    samplers = list(SAMPLERS) if sampler is None else split(sampler)
    budgets = default_budgets(model) if steps is None else [number("--steps", word) for word in split(steps)]
    pictures, plot = out.with_suffix(""), out.with_suffix(".png")
    of_points = [point_pictures(pictures, name, budget) for name in samplers for budget in budgets]
    for path in (out, plot, *(path for point in of_points for path in pictures_of(metrics, point))):
        refuse_existing(path, overwrite)
    chosen = common | ({"metric": metrics[0]} if metrics else {})
    points = run_sweep(model, data, options, samplers=samplers, evaluations=budgets, pictures=pictures, **chosen)
    if points:
        save_points(points, out)
        save_figure(quality(out), plot, overwrite=True)
        print(table(points))
        print(f"written to {out} and {plot}")


def split(text: str) -> list[str]:
    """Split `a, b` into ["a", "b"]."""
    return [word.strip() for word in text.split(",") if word.strip()]


def number(flag: str, text: str) -> int:
    """Parse a whole number that is at least 1; UserError otherwise."""
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{flag} takes whole numbers from 1, not {text!r}; several, with commas, go with --sweep")
    return int(text)
