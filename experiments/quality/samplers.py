"""Compare samplers at few steps.

    python -m experiments.quality.samplers sweep digits
    python -m experiments.quality.samplers sweep cifar10
    python -m experiments.quality.samplers default

`sweep` measures quality against network evaluations: every sampler, every spacing of DPM-Solver++, and 1,000 ancestral
steps, on `digits` (the bundled model) or `cifar10` (the model in runs/cifar10), compared with their training images. It
writes few_steps_MODEL.json after every sampler, and few_steps_MODEL.png at the end. `default` compares the two forms of
DPM-Solver++, each with its own spacing: FID by the standard Inception network after 20 evaluations, for the models of
the MNIST and CIFAR-10 results in runs/. It writes usual_sampler.json. Samples and features are cached, so a killed call
is resumed by the same command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.sweep import sweep
from ddpm.model import Model, load
from ddpm.plotting.plots import Curve, plot_quality
from ddpm.samplers import SAMPLERS, Spacing
from experiments.lib import PICTURES, RESULTS, about, add_folders, command_line, launch, save_picture, save_result
from experiments.quality.headline import HEADLINES

BUDGETS = (5, 10, 20, 50)  # network evaluations per image
SPACED = ("dpm++", "dpm++sde")
SUBJECTS = {"digits": ("digits", "mnist"), "cifar10": ("runs/cifar10", "cifar10")}  # model and its training images

# of the comparison for the default
MODELS, CANDIDATES, NUM, STEPS = ("mnist", "cifar10"), ("dpm++", "dpm++sde"), 2100, 20


def few_steps(
    name: str,
    model: Model,
    data: str,
    *,
    features: str,
    num: int,
    budgets: Sequence[int] = BUDGETS,
    many: int = 1000,
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Evaluate `num` samples of every sampler at every budget, and of `many` ancestral steps; return the JSON content.

    A row is a sampler with a spacing, and its figure at each budget. Heun's method needs an odd number of evaluations,
    so at an even budget it gets one less.
    """
    spaced = [(sampler, SAMPLERS[sampler].spacing) for sampler in SAMPLERS]
    spaced += [(name, other) for name in SPACED for other in get_args(Spacing) if other != SAMPLERS[name].spacing]
    options: dict[str, Any] = {"features": features, "num": num}
    (reference,) = sweep(model, data, samplers=["ancestral"], evaluations=[many], **options)
    metric, settings = reference.report.metrics[0], reference.report.settings
    kept = (
        "candidate",
        "n",
        "images",
        "weights",
        "seed",
        "precision",
        "reference",
        "reference_n",
        "features",
        "engine",
    )
    result: dict[str, Any] = {
        **about(),
        "metric": metric.title,
        "settings": {key: settings[key] for key in kept},
        "budgets": list(budgets),
        "ancestral": {"steps": many, "value": metric.value},
        "rows": [],
    }
    for sampler, spacing in spaced:
        points = sweep(model, data, samplers=[sampler], evaluations=budgets, spacing=spacing, **options)
        values = [point.report.metrics[0].value for point in points]
        evaluations = [point.evaluations for point in points]
        row = {"sampler": sampler, "spacing": spacing, "evaluations": evaluations, "values": values}
        result["rows"].append(row)
        save_result(f"few_steps_{name}", result, results)
        print(f"{sampler:<10} {spacing:<10} " + "  ".join(f"{value:.4g}" for value in values), flush=True)
    save_curves(result, pictures / f"few_steps_{name}.png")
    return result


def save_curves(result: dict[str, Any], path: Path) -> None:
    """Plot a curve per sampler with its default spacing, and a line for the many ancestral steps."""
    rows = [row for row in result["rows"] if row["spacing"] == SAMPLERS[row["sampler"]].spacing]
    curves = {row["sampler"]: Curve(row["evaluations"], row["values"]) for row in rows}
    ends, ancestral = (result["budgets"][0], result["budgets"][-1]), result["ancestral"]
    curves[f"ancestral, {ancestral['steps']:,} steps"] = Curve(ends, [ancestral["value"]] * 2)
    save_picture(plot_quality(curves, result["metric"]), path)


def compare_defaults(runs: Path, moments: Path | None, results: Path = RESULTS) -> Path:
    """Compute FID of the candidates for the default sampler; return the path of usual_sampler.json.

    `moments`: folder with mnist_train.npz and cifar10_train.npz, precomputed statistics of the training images.
    """
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        headline, model = HEADLINES[name], load(runs / name)
        reference = headline.data if moments is None else str(moments / f"{name}_train.npz")
        for sampler in CANDIDATES:
            chosen = {"sampler": sampler, "spacing": SAMPLERS[sampler].spacing, "steps": STEPS, "num": NUM}
            report = evaluate(model, reference, metrics=["fid"], **{**headline.sampling, **chosen})
            (fid,) = report.metrics
            kept = {key: report.settings[key] for key in ("sampler", "spacing", "steps", "n", "weights", "engine")}
            rows.append({"name": name, "title": headline.title, **kept, "metric": fid.title, "value": fid.value})
    return save_result("usual_sampler", {**about(), "rows": rows}, results)


def run_sweep(options: argparse.Namespace) -> None:
    """Run the command `sweep`."""
    model, data = SUBJECTS[options.model]
    sampling = {"features": options.features, "num": options.num}
    few_steps(options.model, load(model), data, **sampling, results=options.out, pictures=options.pictures)


def run_default(options: argparse.Namespace) -> None:
    """Run the command `default`."""
    print(compare_defaults(options.runs, options.moments, options.out))


def main() -> None:
    """Parse the command line and run the chosen comparison."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(required=True)
    swept = commands.add_parser("sweep", help="quality against network evaluations")
    swept.add_argument("model", choices=SUBJECTS)
    swept.add_argument("--num", type=int, default=500, help="samples per FID (default: 500)")
    swept.add_argument("--features", default="builtin", help="builtin (default), inception, or a TorchScript file")
    add_folders(swept, pictures=True)
    swept.set_defaults(action=run_sweep)
    default = commands.add_parser("default", help="the two candidates for the default sampler")
    default.add_argument("--moments", type=Path, metavar="FOLDER", help="precomputed statistics of the training images")
    add_folders(default, runs="runs")
    default.set_defaults(action=run_default)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    launch(main)
