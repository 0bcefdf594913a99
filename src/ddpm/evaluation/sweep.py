"""Quality against the number of network evaluations, for several samplers in one picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.common.files import atomic_write
from ddpm.evaluation.evaluate import Report, evaluate
from ddpm.evaluation.features import load_features
from ddpm.model import Model
from ddpm.plotting.plots import Curve, plot_quality, save_figure
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
    evaluations: Sequence[int] | None = None,
    metric: str = "fid",
    features: str = "inception",
    num: int | None = None,
    test: str | None = None,
    force: bool = False,
    pictures: Path = Path("evaluation"),
    progress: bool = True,
    **sampling: Any,
) -> list[Point]:
    """Evaluate `metric` for every sampler at every budget of network evaluations an image; the rest as for `evaluate`.

    A sampler that asks the network twice a step takes half the steps, so that the budgets compare. The names of a
    point's pictures go on from `pictures` with its sampler and budget.
    """
    budgets = usual_budgets(model) if evaluations is None else evaluations
    planned = [(name, budget, steps_within(name, budget)) for name in samplers for budget in budgets]
    for name, _, steps in planned:  # what is wrong with the last shows before the first is drawn
        list(model.sample_batches([], sampler=name, steps=steps, **sampling))
    network, points = load_features(features), []
    for name, budget, steps in planned:
        report = evaluate(
            model,
            data,
            metrics=[metric],
            features=network,
            num=num,
            test=test,
            force=force,
            pictures=point_pictures(pictures, name, budget),
            progress=progress,
            sampler=name,
            steps=steps,
            **sampling,
        )
        if report is not None:
            points.append(Point(name, steps, find_sampler(name).evaluations(steps), report))
    return points


def usual_budgets(model: Model) -> list[int]:
    """Those of EVALUATIONS that the model's process has steps for, and all its steps where it has fewer."""
    timesteps = model.diffusion.schedule.timesteps
    return [budget for budget in EVALUATIONS if budget <= timesteps] or [timesteps]


def steps_within(sampler: str, budget: int) -> int:
    """The steps that a sampler takes with at most so many evaluations, at least one."""
    return (budget - 1) // find_sampler(sampler).evaluations_per_step + 1


def point_pictures(pictures: Path, sampler: str, budget: int) -> Path:
    """The beginning of the names of one point's pictures, where `pictures` is that of the whole sweep's."""
    return Path(f"{pictures}-{sampler}-{budget}")


def save_points(points: Sequence[Point], path: Path) -> None:
    """All reports in one JSON file."""
    rows = [
        {"sampler": p.sampler, "steps": p.steps, "evaluations": p.evaluations, **p.report.as_dict()} for p in points
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())


def table(points: Sequence[Point]) -> str:
    """A line a point."""
    figure = points[0].report.figures[0]
    lines = [f"{'sampler':<12}{'evaluations':>12}  {figure.title}"]
    lines += [f"{p.sampler:<12}{p.evaluations:>12}  {p.report.figures[0].value:.4g}" for p in points]
    return "\n".join(lines)


def draw_points(points: Sequence[Point], path: Path, *, overwrite: bool = False) -> None:
    """A curve a sampler, as a picture."""
    curves = {}
    for name in dict.fromkeys(point.sampler for point in points):
        mine = sorted((p.evaluations, p.report.figures[0].value) for p in points if p.sampler == name)
        curves[name] = Curve(*zip(*mine, strict=True))
    save_figure(plot_quality(curves, points[0].report.figures[0].title), path, overwrite=overwrite)
