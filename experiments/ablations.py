"""Which choices of the fast recipe earn their place? One is changed at a time, on Fashion-MNIST, at a short budget.

    CUDA_VISIBLE_DEVICES="" python -m experiments.ablations short --jobs 8
    CUDA_VISIBLE_DEVICES="" python -m experiments.ablations longer --jobs 8

The base is the preset `fashion_mnist` for so many images; `longer` asks those variants that win the short course if
they win another. Every variant sees as many images, but for the widths, which get the time that the base takes: their
steps follow from a measurement at the start, kept in RUNS/COURSE/paces.json. Figures: the distance with the built-in
features to the training images, and the share of misplaced levels, which those features cannot see. A cell is a run
directory in RUNS/COURSE; a finished one is kept and one that was killed goes on. After every cell
experiments/results/ablations_COURSE.json is written again, and at the end docs/pictures/ablations_COURSE.png is drawn.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.common.files import atomic_write
from ddpm.model import load
from ddpm.plotting.plots import plot_images, save_figure
from ddpm.training import Config, load_config
from ddpm.training.dry_run import seconds_per_step
from ddpm.training.trainer import Trainer
from experiments.cells import SAMPLER, side_by_side, spread, threads, trained_and_judged
from experiments.record import PICTURES, RESULTS, in_one_line, machine, save_result

PRESET, COLUMNS = "fashion_mnist", 12
BASE = "the recipe"
QUIET = {
    "training.preview_every": 0,
    "training.checkpoint_every": 200,
    "training.keep_checkpoints": 1,
    "training.loggers": [],
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
EQUAL_TIME = [name for name in VARIANTS if name.endswith("equal time")]


@dataclass(frozen=True)
class Budget:
    """What every variant gets: training images, seeds, images and sampling steps of the judgement, overrides of all."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    images: int = 20_000
    seeds: int = 1
    num: int = 2500
    steps: int = 10
    overrides: tuple[tuple[str, Any], ...] = ()


WINNERS = (
    BASE,
    "no min-SNR weighting",
    "constant learning rate",
    "width 24, equal time",
    "8 groups of channels in place of 32",
)
COURSES = {"short": Budget(), "longer": Budget(variants=WINNERS, images=80_000)}


def configuration(variant: str, seed: int, budget: Budget, paces: dict[str, float]) -> Config:
    """The preset with one thing changed, its course fitted to the budget."""
    overrides = QUIET | VARIANTS[variant] | dict(budget.overrides) | {"training.seed": seed}
    config = load_config(PRESET, overrides)
    steps = budget.images / config.training.batch_size
    if variant in paces:
        steps *= paces[BASE] / paces[variant]
    steps = max(2, round(steps))
    return load_config(PRESET, overrides | {"training.steps": steps, "training.warmup": steps // 10})


def measured_paces(folder: Path, budget: Budget, jobs: int) -> dict[str, float]:
    """Seconds a step of the base and of the variants that get equal time, measured once."""
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


def run_cell(variant: str, seed: int, runs: Path, budget: Budget, paces: dict[str, float]) -> dict[str, Any]:
    """One variant with one seed."""
    config = configuration(variant, seed, budget, paces)
    found = trained_and_judged(
        config, folder_of(variant, seed, runs), ["fid", "levels"], num=budget.num, steps=budget.steps
    )
    images = config.training.steps * config.training.batch_size
    return {"variant": variant, "seed": seed, "images": images, **found}


def folder_of(variant: str, seed: int, runs: Path) -> Path:
    return runs / f"{list(VARIANTS).index(variant):02d}-{seed}"


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of every variant, in order."""
    summary = []
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        if mine:
            seconds = float(np.mean([row["seconds"] for row in mine]))
            kept = {"variant": variant, "seeds": len(mine), "images": mine[0]["images"], "seconds": round(seconds, 1)}
            summary.append(kept | {key: spread([row[key] for row in mine]) for key in ("frechet_distance", "levels")})
    return summary


def ablations(
    name: str,
    runs: Path,
    budget: Budget,
    *,
    jobs: int,
    command: str,
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> Path:
    """Make all cells, `jobs` at a time; returns the path of NAME.json, which says that `command` made it."""
    paces = measured_paces(runs, budget, jobs)
    tasks = [(variant, seed, runs, budget, paces) for seed in range(budget.seeds) for variant in budget.variants]
    judged = {"num": budget.num, "sampler": SAMPLER, "steps": budget.steps, "features": "builtin"}
    rows: list[dict[str, Any]] = []
    for row in side_by_side(run_cell, tasks, jobs):
        rows.append(row)
        parameters = {"command": command, "machine": machine(), "threads": threads(jobs), "judged": judged}
        path = save_result(name, {**parameters, "paces": paces, "rows": summarise(rows), "cells": rows}, results)
        print(f"{len(rows)} of {len(tasks)} cells", flush=True)
    draw(name, runs, budget, pictures)
    return path


def draw(name: str, runs: Path, budget: Budget, pictures: Path) -> Path:
    """A row of samples of every variant, all of seed 0."""
    models = [load(folder_of(variant, 0, runs)) for variant in budget.variants]
    drawn = [model.sample(COLUMNS, sampler=SAMPLER, steps=budget.steps) for model in models]
    pictures.mkdir(parents=True, exist_ok=True)
    return save_figure(
        plot_images(torch.stack(drawn), rows=list(budget.variants)), pictures / f"{name}.png", overwrite=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("course", choices=COURSES)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="where the run directories lie")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, which share the cores")
    parser.add_argument("--seeds", type=int, default=Budget.seeds, help="of every variant; more go on from fewer")
    options = parser.parse_args()
    command = f"python -m experiments.ablations {options.course} --jobs {options.jobs}"
    command += f" --seeds {options.seeds}" if options.seeds != Budget.seeds else ""
    budget = replace(COURSES[options.course], seeds=options.seeds)
    name, runs = f"ablations_{options.course}", options.runs / options.course
    with in_one_line("ablations"):
        print(ablations(name, runs, budget, jobs=options.jobs, command=command))


if __name__ == "__main__":
    main()
