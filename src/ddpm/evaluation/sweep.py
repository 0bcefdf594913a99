"""Quality against the number of network evaluations, for several samplers in one picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.errors import require
from ddpm.evaluation.cache import write_whole
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.features import load_features
from ddpm.evaluation.report import Report
from ddpm.model import Model
from ddpm.samplers import SAMPLERS, find_sampler

EVALUATIONS = (5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Point:
    """One sampler at one budget."""

    sampler: str
    steps: int
    evaluations: int
    report: Report


def sweep(
    model: Model,
    data: str,
    *,
    samplers: Sequence[str] = tuple(SAMPLERS),
    evaluations: Sequence[int] = EVALUATIONS,
    metric: str = "fid",
    features: str = "inception",
    **options: Any,
) -> list[Point]:
    """Evaluate `metric` for every sampler at every budget of network evaluations an image; `options` as for `evaluate`.

    A sampler that asks the network twice a step takes half the steps, so that the budgets compare.
    """
    network, points = load_features(features), []
    for name in samplers:
        spec = find_sampler(name)
        for budget in evaluations:
            steps = (budget - 1) // spec.evaluations_per_step + 1
            report = evaluate(model, data, metrics=[metric], features=network, sampler=name, steps=steps, **options)
            if report is not None:
                points.append(Point(name, steps, spec.evaluations(steps), report))
    return points


def save_points(points: Sequence[Point], path: Path) -> None:
    """All reports in one JSON file."""
    rows = [
        {"sampler": p.sampler, "steps": p.steps, "evaluations": p.evaluations, **p.report.as_dict()} for p in points
    ]
    write_whole(path, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())


def table(points: Sequence[Point]) -> str:
    """A line a point."""
    figure = points[0].report.figures[0]
    lines = [f"{'sampler':<12}{'evaluations':>12}  {figure.title}"]
    lines += [f"{p.sampler:<12}{p.evaluations:>12}  {p.report.figures[0].value:.4g}" for p in points]
    return "\n".join(lines)


def plot_points(points: Sequence[Point], path: Path) -> None:
    """A curve a sampler, both axes logarithmic."""
    pyplot = require("matplotlib.pyplot", "eval")
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(p.sampler for p in points):
        curve = [p for p in points if p.sampler == name]
        axes.plot([p.evaluations for p in curve], [p.report.figures[0].value for p in curve], marker="o", label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="network evaluations an image", ylabel=points[0].report.figures[0].title
    )
    axes.set_xticks(sorted({p.evaluations for p in points}), labels=map(str, sorted({p.evaluations for p in points})))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
