"""Quality against the number of network evaluations, for several samplers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.common.files import atomic_write
from ddpm.evaluation.evaluate import Report, evaluate
from ddpm.evaluation.features import load_features
from ddpm.model import Model, SamplingOptions
from ddpm.samplers import SAMPLERS, find_sampler

BUDGETS = (5, 10, 20, 50, 100)  # network evaluations per image
COMMON = ("num", "test", "fit", "force", "progress")  # arguments of `evaluate` that are the same at every point


@dataclass(frozen=True)
class Point:
    """The report of one sampler at one budget."""

    sampler: str
    steps: int
    evaluations: int
    report: Report


def sweep(
    model: Model,
    data: str,
    options: SamplingOptions | None = None,
    *,
    samplers: Sequence[str] = tuple(SAMPLERS),
    evaluations: Sequence[int] | None = None,
    metric: str = "fid",
    features: str = "inception",
    pictures: Path = Path("evaluation"),
    **changes: Any,
) -> list[Point]:
    """Evaluate one metric for every sampler and every budget of network evaluations per image.

    A sampler that evaluates the network twice per step takes half the steps, so budgets are comparable. Options of
    all points are checked before the first image is sampled.

    Args:
        evaluations: the budgets; by default `default_budgets`.
        pictures: path prefix of pictures; the sampler and budget of each point are appended.
        changes: other arguments of `evaluate`, and fields of `SamplingOptions` that replace those of `options`.

    Only the first of several processes gets points.
    """
    common = {name: changes.pop(name) for name in COMMON if name in changes}
    budgets = default_budgets(model) if evaluations is None else evaluations
    planned = [(name, budget, steps_within(name, budget)) for name in samplers for budget in budgets]
    chosen = [SamplingOptions.of(options, **changes, sampler=name, steps=steps) for name, _, steps in planned]
    for point_options in chosen:
        point_options.resolved(model)
    network, points = load_features(features), []
    for (name, budget, steps), point_options in zip(planned, chosen, strict=True):
        where = point_pictures(pictures, name, budget)
        report = evaluate(model, data, point_options, metrics=[metric], features=network, pictures=where, **common)
        if report is not None:
            points.append(Point(name, steps, find_sampler(name).evaluations(steps), report))
    return points


def default_budgets(model: Model) -> list[int]:
    """Return the `BUDGETS` that do not exceed the model's T timesteps; [T] if all do."""
    timesteps = model.diffusion.schedule.timesteps
    return [budget for budget in BUDGETS if budget <= timesteps] or [timesteps]


def steps_within(sampler: str, budget: int) -> int:
    """Return the number of steps that a sampler takes with at most `budget` evaluations, at least one."""
    return (budget - 1) // find_sampler(sampler).evaluations_per_step + 1


def point_pictures(pictures: Path, sampler: str, budget: int) -> Path:
    """Return the path prefix of one point's pictures, given that of the sweep."""
    return Path(f"{pictures}-{sampler}-{budget}")


def save_points(points: Sequence[Point], path: Path) -> None:
    """Write all reports to one JSON file."""
    rows = [
        {"sampler": p.sampler, "steps": p.steps, "evaluations": p.evaluations, **p.report.as_dict()} for p in points
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def table(points: Sequence[Point]) -> str:
    """Return one line per point."""
    metric = points[0].report.metrics[0]
    lines = [f"{'sampler':<12}{'evaluations':>12}  {metric.title}"]
    lines += [f"{p.sampler:<12}{p.evaluations:>12}  {p.report.metrics[0].value:.4g}" for p in points]
    return "\n".join(lines)
