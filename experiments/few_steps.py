"""Quality against network evaluations: every sampler, and every spacing of DPM-Solver++, beside 1,000 steps.

    python -m experiments.few_steps digits
    python -m experiments.few_steps cifar10

MODEL is `digits`, the bundled model, or `cifar10`, the one in runs/cifar10; both are judged against their training
images. After every sampler experiments/results/few_steps_MODEL.json is written again, at the end
docs/pictures/few_steps_MODEL.png. Images and features are cached: a killed call goes on where it was.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ddpm.evaluation.sweep import sweep
from ddpm.model import Model, load
from ddpm.plotting.plots import Curve, plot_quality, save_figure
from ddpm.samplers import SAMPLERS, Spacing
from experiments.record import PICTURES, RESULTS, in_one_line, machine, save_result

BUDGETS = (5, 10, 20, 50)  # network evaluations an image
SPACED = ("dpm++", "dpm++sde")
NUM = 500

SUBJECTS = {"digits": ("digits", "mnist"), "cifar10": ("runs/cifar10", "cifar10")}  # model, and what it was trained on


def few_steps(
    name: str,
    model: Model,
    data: str,
    *,
    features: str,
    num: int,
    budgets: Sequence[int] = BUDGETS,
    many: int = 1000,
    command: str = "",
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Judge `num` images of every sampler at every budget, and of `many` ancestral steps; returns what is in the JSON.

    A row is a sampler with a spacing: its figure at each budget. Heun's method asks the network an odd number of times,
    so at an even budget it asks once less.
    """
    spaced = [(sampler, SAMPLERS[sampler].spacing) for sampler in SAMPLERS]
    spaced += [(name, other) for name in SPACED for other in get_args(Spacing) if other != SAMPLERS[name].spacing]
    options: dict[str, Any] = {"features": features, "num": num}
    (reference,) = sweep(model, data, samplers=["ancestral"], evaluations=[many], **options)
    figure, settings = reference.report.figures[0], reference.report.settings
    kept = ("judged", "n", "images", "weights", "seed", "precision", "reference", "reference_n", "features", "engine")
    result: dict[str, Any] = {
        "command": command,
        "machine": machine(),
        "figure": figure.title,
        "settings": {key: settings[key] for key in kept},
        "budgets": list(budgets),
        "ancestral": {"steps": many, "value": figure.value},
        "rows": [],
    }
    for sampler, spacing in spaced:
        points = sweep(model, data, samplers=[sampler], evaluations=budgets, spacing=spacing, **options)
        values = [point.report.figures[0].value for point in points]
        evaluations = [point.evaluations for point in points]
        row = {"sampler": sampler, "spacing": spacing, "evaluations": evaluations, "values": values}
        result["rows"].append(row)
        save_result(f"few_steps_{name}", result, results)
        print(f"{sampler:<10} {spacing:<10} " + "  ".join(f"{value:.4g}" for value in values), flush=True)
    pictures.mkdir(parents=True, exist_ok=True)
    draw(result, pictures / f"few_steps_{name}.png")
    return result


def draw(result: dict[str, Any], path: Path) -> Path:
    """A curve a sampler with its own spacing, and a line for the many ancestral steps."""
    rows = [row for row in result["rows"] if row["spacing"] == SAMPLERS[row["sampler"]].spacing]
    curves = {row["sampler"]: Curve(row["evaluations"], row["values"]) for row in rows}
    ends, ancestral = (result["budgets"][0], result["budgets"][-1]), result["ancestral"]
    curves[f"ancestral, {ancestral['steps']:,} steps"] = Curve(ends, [ancestral["value"]] * 2)
    return save_figure(plot_quality(curves, result["figure"]), path, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="MODEL", choices=SUBJECTS, help=", ".join(SUBJECTS))
    parser.add_argument("--num", type=int, default=NUM, help="samples that every figure is of")
    parser.add_argument("--features", default="builtin", help="builtin, inception, or a TorchScript file")
    options = parser.parse_args()
    command = f"python -m experiments.few_steps {options.name}"
    command += f" --num {options.num}" if options.num != NUM else ""
    command += f" --features {Path(options.features).name}" if options.features != "builtin" else ""
    model, data = SUBJECTS[options.name]
    with in_one_line(options.name):
        few_steps(options.name, load(model), data, features=options.features, num=options.num, command=command)


if __name__ == "__main__":
    main()
