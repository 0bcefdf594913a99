"""`ddpm evaluate`: judge a model, or images drawn before, against real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.cli.options import PATH, Eta, Overwrite, parse_clip
from ddpm.common.errors import UserError
from ddpm.common.files import refuse_existing, user_path
from ddpm.common.names import DEFAULT_SAMPLER

if TYPE_CHECKING:
    from ddpm.evaluation.evaluate import Report

METRIC_NAMES = ("fid", "kid", "class_kid", "prdc", "is", "drift", "levels", "cas", "nll", "memorisation")


def evaluate(
    judged: Annotated[str, typer.Argument(metavar="MODEL", help="a model, or a folder or .npz of images")],
    data: Annotated[str, typer.Option(help="real images: SOURCE; or an .npz of ready moments: mu, sigma, n")],
    metrics: Annotated[
        str | None,
        typer.Option(help=f"some of {', '.join(METRIC_NAMES)}; default: the quick ones"),
    ] = None,
    features: Annotated[str, typer.Option(help="inception, builtin, or a TorchScript file")] = "inception",
    num: Annotated[int | None, typer.Option(help="images the model draws; default 10,000")] = None,
    test: Annotated[str | None, typer.Option(help="real images not trained on; default: the data's test split")] = None,
    sampler: Annotated[
        str | None, typer.Option(help=f"default {DEFAULT_SAMPLER}; several, with commas, for --sweep")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="default 20; for --sweep evaluations an image, with commas")] = None,
    spacing: Annotated[str | None, typer.Option(help="trailing, leading, uniform, quadratic or log_snr")] = None,
    eta: Eta = None,
    labels: Annotated[str | None, typer.Option(help="classes taken in turn: 3, or 0,1,2, or all")] = None,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance; 1, the default, is off")] = None,
    clip: Annotated[str | None, typer.Option(help="predicted x_0: static (default), dynamic or none")] = None,
    seed: Annotated[int | None, typer.Option(help="default 0")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images a forward pass")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32")] = None,
    force: Annotated[bool, typer.Option(help="compute a biased FID and label it")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="quality against network evaluations")] = False,
    out: Annotated[Path, typer.Option(**PATH, help="JSON; pictures take its name")] = Path("evaluation.json"),
    overwrite: Overwrite = False,
) -> None:
    """Judge a model, or images drawn before, against real images. A model's card takes the figures up."""
    from ddpm.evaluation.evaluate import evaluate as run_evaluation
    from ddpm.evaluation.metrics import pictures_of

    if out.suffix != ".json":
        raise UserError(f"cannot write {out.name}: give a name ending in .json")
    sampling = {
        "spacing": spacing,
        "eta": eta,
        "labels": labels,
        "guidance": guidance,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
    }
    sampling = {name: value for name, value in sampling.items() if value is not None}
    if clip is not None:
        sampling["clip"] = parse_clip(clip)
    options = {"features": features, "num": num, "test": test, "force": force, **sampling}
    names = None if metrics is None else split(metrics)
    if sweep:
        draw_sweep(judged, data, out, overwrite, names, sampler, steps, options)
        return
    pictures = out.with_suffix("")
    for path in (out, *pictures_of(names, pictures)):
        refuse_existing(path, overwrite)
    one = {"sampler": sampler, "steps": None if steps is None else number("--steps", steps)}
    options |= {name: value for name, value in one.items() if value is not None}
    report = run_evaluation(judged, data, metrics=names, pictures=pictures, **options)
    if report is not None:
        report.save(out)
        print(report.table())
        print(f"written to {out}")
        add_to_card(judged, report)


def add_to_card(judged: str, report: Report) -> None:
    """Put the figures into the card of a model folder: neither the package's own, nor one of the Hub's cache."""
    from ddpm.interop.card import add_metrics
    from ddpm.model import BUNDLED, find_model, load

    if judged in BUNDLED or not user_path(judged).is_dir():
        return
    folder = find_model(judged)
    if not (folder / "ddpm.json").is_file() or load(folder).weights_hash != report.settings.get("weights"):
        return  # images, or a model that training has replaced meanwhile
    try:
        add_metrics(folder, report.for_card())
    except OSError as error:  # the evaluation is done and kept: a model of somebody else's is no reason to fail
        print(f"but its card, {folder / 'README.md'}, could not be updated: {error.strerror or error}")
    else:
        print(f"and to {folder / 'README.md'}")


def draw_sweep(
    judged: str,
    data: str,
    out: Path,
    overwrite: bool,
    metrics: list[str] | None,
    sampler: str | None,
    steps: str | None,
    options: dict[str, Any],
) -> None:
    """One figure for every sampler at every number of evaluations: a table, JSON and a picture."""
    from ddpm.evaluation.metrics import pictures_of
    from ddpm.evaluation.sources import open_judged
    from ddpm.evaluation.sweep import draw_points, point_pictures, save_points, table, usual_budgets
    from ddpm.evaluation.sweep import sweep as run_sweep
    from ddpm.model import Model
    from ddpm.samplers import SAMPLERS

    if metrics is not None and len(metrics) != 1:
        raise UserError("--sweep takes one metric, e.g. --metrics kid")
    model = open_judged(judged)
    if not isinstance(model, Model):
        raise UserError(f"--sweep draws with a model, and {judged} holds images")
    samplers = list(SAMPLERS) if sampler is None else split(sampler)
    evaluations = usual_budgets(model) if steps is None else [number("--steps", word) for word in split(steps)]
    pictures, curves = out.with_suffix(""), out.with_suffix(".png")
    of_points = [point_pictures(pictures, name, budget) for name in samplers for budget in evaluations]
    for path in (out, curves, *(path for point in of_points for path in pictures_of(metrics, point))):
        refuse_existing(path, overwrite)
    chosen: dict[str, Any] = {"metric": metrics[0]} if metrics else {}
    points = run_sweep(model, data, samplers=samplers, evaluations=evaluations, pictures=pictures, **chosen, **options)
    if points:
        save_points(points, out)
        draw_points(points, curves, overwrite=True)
        print(table(points))
        print(f"written to {out} and {curves}")


def split(text: str) -> list[str]:
    """`a, b` as ["a", "b"]."""
    return [word.strip() for word in text.split(",") if word.strip()]


def number(flag: str, text: str) -> int:
    """A count that is at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{flag} takes whole numbers from 1, not {text!r}; several, with commas, go with --sweep")
    return int(text)
