"""Find which choices of the recipe pay: change one at a time, on Fashion-MNIST, at a short budget.

    CUDA_VISIBLE_DEVICES="" python -m experiments.quality.ablations muon --jobs 2
    CUDA_VISIBLE_DEVICES="" python -m experiments.quality.ablations short --jobs 8
    CUDA_VISIBLE_DEVICES="" python -m experiments.quality.ablations longer --jobs 8

`muon` changes the recipe of the presets, with a smaller network. `short` changes the recipe before it, with Adam, and
`longer` repeats the winners of `short` with four times the images. Every variant sees as many images, except those of
equal time: their steps follow from a measurement at the start, kept in RUNS/BUDGET/paces.json. Figures: the distance
with the built-in features to the training images, and the fraction of misplaced levels, which those cannot see.
A cell is a run directory in RUNS/BUDGET. Finished cells are kept. Writes ablations_BUDGET.json after every cell, and
ablations_BUDGET.png at the end.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.common.files import atomic_write
from ddpm.training import Config, load_config
from ddpm.training.dry_run import seconds_per_step
from ddpm.training.trainer import Trainer
from experiments.lib import PICTURES, RESULTS, about, add_folders, command_line, launch, save_result
from experiments.quality import cells
from experiments.quality.cells import Row, make_cells, save_samples, threads, train_and_evaluate

PRESET, COLUMNS = "fashion_mnist", 12
BASE = "the recipe"
QUIET = {
    "training.preview_every": 0,
    "training.checkpoint_every": 10_000,
    "training.keep_checkpoints": 1,
    "training.loggers": [],
}

ADAM = {
    "network.channels": 32,
    "network.channel_mult": [1, 2, 4],
    "network.groups": 32,
    "network.conditioning": "add",
    "training.batch_size": 64,
    "training.optimizer": "adam",
    "training.learning_rate": 1e-3,
}
MUON = ADAM | {
    "network.channels": 16,
    "network.groups": 8,
    "training.batch_size": 32,
    "training.optimizer": "muon",
    "training.learning_rate": 3e-3,
}
MUON_VARIANTS: dict[str, dict[str, Any]] = {
    "Adam at 1e-3 in place of Muon": {"training.optimizer": "adam", "training.learning_rate": 1e-3},
    "learning rate 2e-3": {"training.learning_rate": 2e-3},
    "learning rate 5e-3": {"training.learning_rate": 5e-3},
    "batches of 16, learning rate 2e-3": {"training.batch_size": 16, "training.learning_rate": 2e-3},
    "width 24": {"network.channels": 24},
    "width 24, batches of 64": {"network.channels": 24, "training.batch_size": 64},
    "widths 1, 3, 6 in place of 1, 2, 4": {"network.channel_mult": [1, 3, 6]},
    "2 blocks in each level": {"network.blocks": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "v in place of x_0": {"diffusion.prediction": "v"},
    "ε in place of x_0": {"diffusion.prediction": "epsilon"},
    "linear in place of cosine schedule": {"diffusion.schedule": "linear"},
    "uniform in place of stratified timesteps": {"diffusion.timestep_sampler": "uniform"},
    "no min-SNR weighting": {"diffusion.weighting": "none"},
    "the paper's average, 0.9999 throughout": {"training.ema_decay": 0.9999, "training.ema_warmup": False},
    "no average": {"training.ema_decay": 0.0},
    "constant learning rate": {"training.lr_schedule": "constant"},
    "learning rate 2e-4": {"training.learning_rate": 2e-4},
    "batches of 128": {"training.batch_size": 128},
    "batches of 32": {"training.batch_size": 32},
    "width 48, equal time": {"network.channels": 48, "network.groups": 16},
    "width 24, equal time": {"network.channels": 24, "network.groups": 8},
    "2 blocks a level": {"network.blocks": 2},
    "no attention": {"network.attention": [], "network.mid_attention": False},
    "8 groups of channels in place of 32": {"network.groups": 8},
}
ALL = [*VARIANTS, *MUON_VARIANTS]
EQUAL_TIME = [name for name in VARIANTS if name.endswith("equal time")]


@dataclass(frozen=True, kw_only=True)
class Budget(cells.Budget):
    """Options of every variant. `recipe`: what all have; `images`: training images; `seeds`: number of seeds."""

    recipe: tuple[tuple[str, Any], ...] = tuple(ADAM.items())
    variants: tuple[str, ...] = tuple(VARIANTS)
    images: int = 20_000
    seeds: int = 1
    num: int = 2500
    steps: int = 10


WINNERS = (
    BASE,
    "no min-SNR weighting",
    "constant learning rate",
    "width 24, equal time",
    "8 groups of channels in place of 32",
)
BUDGETS = {
    "muon": Budget(recipe=tuple(MUON.items()), variants=(BASE, *MUON_VARIANTS)),
    "short": Budget(),
    "longer": Budget(variants=WINNERS, images=80_000),
}


def configuration(variant: str, seed: int, budget: Budget, paces: dict[str, float]) -> Config:
    """The recipe with one change, and with the steps and warm-up that fit the budget."""
    change = (VARIANTS | MUON_VARIANTS)[variant]
    overrides = QUIET | dict(budget.recipe) | change | dict(budget.overrides) | {"training.seed": seed}
    config = load_config(PRESET, overrides)
    steps = budget.images / config.training.batch_size
    if variant in paces:
        steps *= paces[BASE] / paces[variant]
    steps = max(2, round(steps))
    return load_config(PRESET, overrides | {"training.steps": steps, "training.warmup": steps // 10})


def measured_paces(folder: Path, budget: Budget, jobs: int) -> dict[str, float]:
    """Seconds per step of the base and of the variants that get equal time, measured once and kept in `folder`."""
    path = folder / "paces.json"
    if path.exists():
        return json.loads(path.read_text())
    torch.set_num_threads(threads(jobs))
    paces = {}
    for name in (BASE, *(name for name in budget.variants if name in EQUAL_TIME)):
        config = configuration(name, 0, budget, {})
        paces[name] = seconds_per_step(Trainer(config, folder))
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(paces, indent=1).encode())
    return paces


def run_cell(variant: str, seed: int, runs: Path, budget: Budget, paces: dict[str, float]) -> Row:
    """Train and evaluate one variant with one seed, resume it, or read its result."""
    config = configuration(variant, seed, budget, paces)
    found = train_and_evaluate(config, run_folder(variant, seed, runs), ["fid", "levels"], budget)
    images = config.training.steps * config.training.batch_size
    return {"variant": variant, "seed": seed, "images": images, **found}


def run_folder(variant: str, seed: int, runs: Path) -> Path:
    """Run directory of a cell."""
    return runs / f"{ALL.index(variant):02d}-{seed}"


def summarise(rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds of every variant, in the order of `ALL`."""
    rows = sorted(rows, key=lambda row: ALL.index(row["variant"]))
    summaries = cells.summarise(rows, ("variant",), ("frechet_distance", "levels"))
    for summary in summaries:
        group = [row for row in rows if row["variant"] == summary["variant"]]
        seconds = float(np.mean([row["seconds"] for row in group]))
        summary |= {"images": group[0]["images"], "seconds": round(seconds, 1)}
    return summaries


def ablations(
    name: str, runs: Path, budget: Budget, *, jobs: int, results: Path = RESULTS, pictures: Path = PICTURES
) -> Path:
    """Run all cells, `jobs` at a time; return the path of NAME.json."""
    paces = measured_paces(runs, budget, jobs)
    parameters = {**about(), "threads": threads(jobs), "judged": budget.judged, "paces": paces}
    tasks = [(variant, seed, runs, budget, paces) for seed in range(budget.seeds) for variant in budget.variants]

    def save(rows: list[Row]) -> Path:
        return save_result(name, {**parameters, "rows": summarise(rows), "cells": rows}, results)

    path = make_cells(run_cell, tasks, jobs, save)
    folders = {variant: run_folder(variant, 0, runs) for variant in budget.variants}
    save_samples(pictures / f"{name}.png", folders, budget, COLUMNS)
    return path


def main() -> None:
    """Parse the command line and run the ablations."""
    parser = command_line(__doc__)
    parser.add_argument("budget", choices=BUDGETS)
    parser.add_argument("--jobs", type=int, default=1, help="cells to run at once; they share the cores (default: 1)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every variant; finished ones are kept")
    add_folders(parser, pictures=True, runs="runs/ablations")
    options = parser.parse_args()
    budget = replace(BUDGETS[options.budget], seeds=options.seeds)
    folders = {"results": options.out, "pictures": options.pictures}
    print(ablations(f"ablations_{options.budget}", options.runs / options.budget, budget, jobs=options.jobs, **folders))


if __name__ == "__main__":
    launch(main)
