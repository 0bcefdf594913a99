"""Compare schedules and what the network predicts, all at one short budget.

    CUDA_VISIBLE_DEVICES="" python -m experiments.quality.study --jobs 8

Linear and cosine schedule, each with a network that predicts ε, x_0 or v, and as a baseline one step of regression from
pure noise to an image. All use the network, the budget and the unweighted loss of study_mnist.yaml (three seeds) or
study_cifar10.yaml (one seed). A cell is a run directory below --runs. Finished cells are kept and killed ones are
resumed by the same command. Writes study.json after every cell, and study_*.png at the end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.samplers import Spacing
from ddpm.training import Config, load_config
from experiments.lib import PICTURES, RESULTS, about, add_folders, command_line, launch, save_result
from experiments.quality import cells
from experiments.quality.cells import Row, finished, make_cells, save_samples, threads, train_and_evaluate

SCHEDULES = ("linear", "cosine")
PREDICTIONS = {"epsilon": "ε", "x_0": "x_0", "v": "v"}
METRICS = ("fid", "kid", "prdc", "levels")  # with the built-in features
SHOWN = ("frechet_distance", "kid", "precision", "recall", "levels")
COLUMNS = 10  # of the pictures

# One step from noise to image is a process without any signal: ᾱ = 0 at both of the two timesteps a process must have.
# The network sees noise, predicts x_0, and runs once; the best that regression can predict is the mean of the class.
ONE_STEP = {"diffusion.betas": [1.0, 1.0], "diffusion.prediction": "x_0"}


@dataclass(frozen=True, kw_only=True)
class Budget(cells.Budget):
    """Options of every cell. `seeds`: number of seeds by data set.

    The spacing is even in t for every schedule; `log_snr` would place the timesteps by the schedule.
    """

    seeds: dict[str, int]
    num: int = 2000
    steps: int = 20
    spacing: Spacing | None = "trailing"


FULL = Budget(seeds={"mnist": 3, "cifar10": 1})


@dataclass(frozen=True)
class Cell:
    """One model of the study; `schedule` is None for the one-step baseline."""

    data: str
    schedule: str | None
    prediction: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return f"{self.data}-{self.schedule or 'one_step'}-{self.prediction}-{self.seed}"

    @property
    def title(self) -> str:
        """Title of the row in a picture."""
        return f"{self.schedule}, {PREDICTIONS[self.prediction]}" if self.schedule else "one step"

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that replace those of the configuration."""
        seed = {"training.seed": self.seed}
        if self.schedule is None:
            return ONE_STEP | seed
        return {"diffusion.schedule": self.schedule, "diffusion.prediction": self.prediction} | seed


def all_cells(budget: Budget) -> list[Cell]:
    """All cells; one seed of everything comes before the next seed."""
    kinds = [(schedule, prediction) for schedule in SCHEDULES for prediction in PREDICTIONS] + [(None, "x_0")]
    return [
        Cell(data, schedule, prediction, seed)
        for seed in range(max(budget.seeds.values()))
        for data, seeds in budget.seeds.items()
        if seed < seeds
        for schedule, prediction in kinds
    ]


def configuration(data: str, overrides: dict[str, Any]) -> Config:
    """Configuration of the cells of a data set."""
    return load_config(Path(__file__).parent / f"study_{data}.yaml", overrides)


def run_cell(cell: Cell, runs: Path, budget: Budget) -> Row:
    """Train and evaluate one cell, resume it, or read its result."""
    config = configuration(cell.data, dict(budget.overrides) | cell.overrides)
    steps = budget.steps if cell.schedule else 1
    found = train_and_evaluate(config, runs / cell.name, METRICS, budget, steps=steps)
    row = {"data": cell.data, "schedule": cell.schedule, "prediction": cell.prediction, "seed": cell.seed}
    return row | {key: found[key] for key in (*SHOWN, "weights", "seconds")}


def in_order(rows: Iterable[Row], budget: Budget) -> list[Row]:
    """Rows in the order of `all_cells`."""
    order = {cell: place for place, cell in enumerate(all_cells(budget))}
    return sorted(rows, key=lambda row: order[Cell(row["data"], row["schedule"], row["prediction"], row["seed"])])


def summarise(rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds of each kind."""
    return cells.summarise(rows, ("data", "schedule", "prediction"), SHOWN)


def save_study_picture(data: str, runs: Path, budget: Budget, pictures: Path) -> None:
    """Save a row of samples of each kind below a row of training images, if all cells of seed 0 are finished."""
    shown = [cell for cell in all_cells(budget) if cell.data == data and cell.seed == 0]
    if all(finished(runs / cell.name) for cell in shown):
        folders = {cell.title: runs / cell.name for cell in shown}
        save_samples(pictures / f"study_{data}.png", folders, budget, COLUMNS, real_images(data, budget))


def real_images(data: str, budget: Budget) -> torch.Tensor:
    """First training image of each class, (COLUMNS, C, H, W) in [-1, 1]."""
    dataset = open_dataset(configuration(data, dict(budget.overrides)).data)
    first = [int((dataset.labels == label).nonzero()[0]) for label in range(COLUMNS)]
    return to_float(dataset.batch(first)[0])


def study(runs: Path, budget: Budget, *, jobs: int = 1, results: Path = RESULTS, pictures: Path = PICTURES) -> Path:
    """Run all cells, `jobs` at a time; return the path of study.json."""
    parameters = {
        **about(),
        "threads": threads(jobs),
        "judged": budget.judged,
        "budget": {data: training_budget(data, budget) for data in budget.seeds},
    }

    def save(rows: list[Row]) -> Path:
        rows = in_order(rows, budget)
        return save_result("study", {**parameters, "rows": summarise(rows), "cells": rows}, results)

    path = make_cells(run_cell, [(cell, runs, budget) for cell in all_cells(budget)], jobs, save)
    for data in budget.seeds:
        save_study_picture(data, runs, budget, pictures)
    return path


def training_budget(data: str, budget: Budget) -> dict[str, Any]:
    """Training steps, batch size and images of a cell."""
    training = configuration(data, dict(budget.overrides)).training
    return {
        "steps": training.steps,
        "batch_size": training.batch_size,
        "images": training.steps * training.batch_size,
    }


def main() -> None:
    """Parse the command line and run the study."""
    parser = command_line(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="cells to run at once; they share the cores (default: 1)")
    parser.add_argument("--steps", type=int, help="training steps of a cell (default: as in the configurations)")
    add_folders(parser, pictures=True, runs="runs/study")
    options = parser.parse_args()
    budget = FULL
    if options.steps:
        budget = replace(budget, overrides=(*budget.overrides, ("training.steps", options.steps)))
    print(study(options.runs, budget, jobs=options.jobs, results=options.out, pictures=options.pictures))


if __name__ == "__main__":
    launch(main)
