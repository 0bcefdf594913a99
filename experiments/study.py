"""Which schedule, and what should the network predict? Every combination at one short budget.

    CUDA_VISIBLE_DEVICES="" python -m experiments.study --jobs 8

Linear and cosine schedule, each with a network that predicts ε, x_0 or v, and beside them the naive way: one step of
regression from pure noise to an image. All have the network, the budget and the unweighted loss of
experiments/study_mnist.yaml (three seeds) or study_cifar10.yaml (one). A cell is a run directory below --runs; a
finished one is kept and one that was killed goes on, so the same command ends what it began. After every cell
experiments/results/study.json is written again, at the end docs/pictures/study_*.png.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.model import Model, load
from ddpm.plotting.plots import plot_images, save_figure
from ddpm.samplers import Spacing
from ddpm.training import load_config
from experiments.cells import SAMPLER, finished, side_by_side, spread, threads, trained_and_judged
from experiments.record import PICTURES, RESULTS, in_one_line, machine, save_result

SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("epsilon", "x_0", "v")
METRICS = ("fid", "kid", "prdc", "levels")  # with the built-in features
SHOWN = ("frechet_distance", "kid", "precision", "recall", "levels")
COLUMNS = 10  # of the pictures
SPACING: Spacing = "trailing"  # timesteps even in t for every schedule; log_snr would place them by the schedule

# One step from noise to image is a process without any signal: ᾱ = 0 at both of the two timesteps a process must have.
# The network sees noise, answers x_0, and is asked once; the best that regression can answer is its class's mean image.
ONE_STEP = {"diffusion.betas": [1.0, 1.0], "diffusion.prediction": "x_0"}


@dataclass(frozen=True)
class Budget:
    """What every cell of a study gets.

    seeds: MNIST's and CIFAR-10's number of seeds; num: images a cell is judged by; steps: sampling steps; overrides: of
    the configurations.
    """

    seeds: dict[str, int]
    num: int = 2000
    steps: int = 20
    overrides: tuple[tuple[str, Any], ...] = ()


FULL = Budget({"mnist": 3, "cifar10": 1})


@dataclass(frozen=True)
class Cell:
    """One model of the study; `schedule` is None for the one-step baseline."""

    data: str
    schedule: str | None
    prediction: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.schedule or 'one_step'}-{self.prediction}-{self.seed}"

    @property
    def overrides(self) -> dict[str, Any]:
        seed = {"training.seed": self.seed}
        if self.schedule is None:
            return ONE_STEP | seed
        return {"diffusion.schedule": self.schedule, "diffusion.prediction": self.prediction} | seed


def cells(budget: Budget) -> list[Cell]:
    """All cells, one seed of everything before the next."""
    kinds = [(schedule, prediction) for schedule in SCHEDULES for prediction in PREDICTIONS] + [(None, "x_0")]
    return [
        Cell(data, schedule, prediction, seed)
        for seed in range(max(budget.seeds.values()))
        for data, seeds in budget.seeds.items()
        if seed < seeds
        for schedule, prediction in kinds
    ]


def run_cell(cell: Cell, runs: Path, budget: Budget) -> dict[str, Any]:
    """Train and judge one cell, or go on with it, or read what it came to."""
    overrides = dict(budget.overrides) | cell.overrides
    config = load_config(Path(__file__).parent / f"study_{cell.data}.yaml", overrides)
    steps = budget.steps if cell.schedule else 1
    found = trained_and_judged(config, runs / cell.name, METRICS, num=budget.num, steps=steps, spacing=SPACING)
    row = {"data": cell.data, "schedule": cell.schedule, "prediction": cell.prediction, "seed": cell.seed}
    return row | {key: found[key] for key in (*SHOWN, "weights", "seconds")}


def summarise(rows: list[dict[str, Any]], budget: Budget, parameters: dict[str, Any]) -> dict[str, Any]:
    """study.json: every cell, and mean and standard deviation over the seeds of each kind."""
    order = [cell.name for cell in cells(budget)]
    rows = sorted(rows, key=lambda row: order.index(cell_of(row).name))
    kinds = dict.fromkeys((row["data"], row["schedule"], row["prediction"]) for row in rows)
    summary = []
    for kind in kinds:
        mine = [row for row in rows if (row["data"], row["schedule"], row["prediction"]) == kind]
        figures = {key: spread([row[key] for row in mine]) for key in SHOWN}
        data, schedule, prediction = kind
        summary.append({"data": data, "schedule": schedule, "prediction": prediction, "seeds": len(mine), **figures})
    return {**parameters, "rows": summary, "cells": rows}


def cell_of(row: dict[str, Any]) -> Cell:
    return Cell(row["data"], row["schedule"], row["prediction"], row["seed"])


def draw(data: str, runs: Path, budget: Budget, folder: Path) -> Path | None:
    """A row of samples of each kind, all of seed 0, below a row of training images; None until all cells are there."""
    mine = [cell for cell in cells(budget) if cell.data == data and cell.seed == 0]
    if not all(finished(runs / cell.name) for cell in mine):
        return None
    models = {title(cell): load(runs / cell.name) for cell in mine}
    steps = {title(cell): budget.steps if cell.schedule else 1 for cell in mine}
    pictures = [real_images(data, next(iter(models.values())))]
    sampling = {"sampler": SAMPLER, "spacing": SPACING}
    pictures += [model.sample(COLUMNS, steps=steps[name], **sampling) for name, model in models.items()]
    drawn = plot_images(torch.stack(pictures), rows=["training images", *models])
    return save_figure(drawn, folder / f"study_{data}.png", overwrite=True)


def real_images(data: str, model: Model) -> torch.Tensor:
    """The first training image of each class in turn."""
    channels, *size = model.image_shape
    dataset = open_dataset(data, image_size=tuple(size), channels=channels, labels=True)
    first = [int((dataset.labels == label).nonzero()[0]) for label in range(COLUMNS)]
    return to_float(dataset.batch(first)[0])


def title(cell: Cell) -> str:
    shown = {"epsilon": "ε", "x_0": "x_0", "v": "v"}[cell.prediction]
    return f"{cell.schedule}, {shown}" if cell.schedule else "one step"


def study(
    runs: Path,
    budget: Budget,
    *,
    jobs: int = 1,
    command: str = "python -m experiments.study",
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> Path:
    """Make all cells, `jobs` at a time; returns the path of study.json, which says that `command` made it."""
    parameters = {
        "command": command,
        "machine": machine(),
        "threads": threads(jobs),
        "judged": {
            "num": budget.num,
            "sampler": SAMPLER,
            "steps": budget.steps,
            "spacing": SPACING,
            "features": "builtin",
        },
        "budget": {data: budget_of(data, budget) for data in budget.seeds},
    }
    rows: list[dict[str, Any]] = []
    waiting = [(cell, runs, budget) for cell in cells(budget)]
    for row in side_by_side(run_cell, waiting, jobs):
        rows.append(row)
        path = save_result("study", summarise(rows, budget, parameters), results)
        print(f"{len(rows)} of {len(waiting)} cells", flush=True)
    for data in budget.seeds:
        draw(data, runs, budget, pictures)
    return path


def budget_of(data: str, budget: Budget) -> dict[str, Any]:
    config = load_config(Path(__file__).parent / f"study_{data}.yaml", dict(budget.overrides))
    images = config.training.steps * config.training.batch_size
    return {"steps": config.training.steps, "batch_size": config.training.batch_size, "images": images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="where the run directories lie")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, which share the cores")
    parser.add_argument("--steps", type=int, help="training steps of a cell, in place of the configurations'")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    options = parser.parse_args()
    budget, command = FULL, f"python -m experiments.study --jobs {options.jobs}"
    if options.steps:
        budget = replace(budget, overrides=(*budget.overrides, ("training.steps", options.steps)))
        command += f" --steps {options.steps}"
    places = {"results": options.out, "pictures": options.pictures}
    with in_one_line("study"):
        print(study(options.runs, budget, jobs=options.jobs, command=command, **places))


if __name__ == "__main__":
    main()
