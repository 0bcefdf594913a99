"""Grids of small trainings ("cells") that are each evaluated.

Cells run side by side. A finished cell is kept, and one that was killed is resumed by the same command.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write
from ddpm.evaluation.evaluate import evaluate
from ddpm.model import load
from ddpm.plotting.plots import plot_images
from ddpm.samplers import Spacing
from ddpm.training import Config, load_config, train
from experiments.lib import cores, save_picture

SAMPLER = "dpm++"  # better than the default sampler in fewer than 20 steps
NOTE = "cell.json"  # in the run directory of a finished cell

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sampling and training options of every cell of a grid.

    num: samples to evaluate; steps: sampling steps; spacing: of their timesteps, None for the sampler's default;
    overrides: settings that replace those of the configurations.
    """

    num: int
    steps: int
    spacing: Spacing | None = None
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def judged(self) -> dict[str, Any]:
        """How the cells were evaluated, for the JSON file."""
        spacing = {"spacing": self.spacing} if self.spacing else {}
        return {"num": self.num, "sampler": SAMPLER, "steps": self.steps, **spacing, "features": "builtin"}


def train_and_evaluate(
    config: Config, folder: Path, metrics: Sequence[str], budget: Budget, *, steps: int | None = None
) -> Row:
    """Train in the run directory `folder` and evaluate with the built-in features, or resume, or read the result.

    The samples use the seed of the run, and are compared with the images that it was trained on. `steps` replaces the
    sampling steps of the budget.

    Returns the metrics by name, `weights` (their hash) and `seconds` of training.

    Raises:
        UserError: the folder holds a training of another configuration.
    """
    note, steps = folder / NOTE, steps or budget.steps
    wanted = {"config": config.model_dump(mode="json"), "metrics": list(metrics), "num": budget.num, "steps": steps}
    wanted |= {"spacing": budget.spacing} if budget.spacing else {}
    if note.exists() and (found := json.loads(note.read_text()))["wanted"] == wanted:
        return found["row"]
    begun = (folder / "config.yaml").exists()
    if begun and load_config(folder / "config.yaml") != config:
        raise UserError(f"{folder} holds a run of another configuration; move it away or choose another --runs folder")
    if not (begun and _trained_steps(folder) == config.training.steps):
        train(config, folder, resume=begun, overwrite=not begun)
    model = load(folder)
    report = evaluate(
        model,
        config.data.source,
        metrics=metrics,
        features="builtin",
        progress=False,
        num=budget.num,
        sampler=SAMPLER,
        steps=steps,
        spacing=budget.spacing,
        seed=config.training.seed,
    )
    row = {one.key: one.value for one in report.metrics}
    row |= {"weights": model.weights_hash, "seconds": model.provenance["seconds"]}
    atomic_write(note, json.dumps({"wanted": wanted, "row": row}, indent=1).encode())
    return row


def finished(folder: Path) -> bool:
    """Whether the cell of this run directory has been evaluated."""
    return (folder / NOTE).exists()


def _trained_steps(folder: Path) -> int | None:
    """Training steps of the model in a run directory, or None if there is no model yet."""
    return load(folder, device="cpu").provenance["steps"] if (folder / "model" / "ddpm.json").exists() else None


def make_cells(
    work: Callable[..., Row], tasks: Sequence[tuple[Any, ...]], jobs: int, save: Callable[[list[Row]], Path]
) -> Path:
    """Run `work(*task)` for each task and save all rows found so far after each; return the path of the result."""
    rows: list[Row] = []
    for row in side_by_side(work, tasks, jobs):
        rows.append(row)
        path = save(rows)
        print(f"{len(rows)} of {len(tasks)} cells", flush=True)
    return path


def side_by_side(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Yield the results of `work(*task)` as they finish, from `jobs` processes that share the cores.

    Small networks gain little from a second thread, so many processes with few threads each are faster.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads(jobs),)) as pool:
        waiting = [pool.submit(work, *task) for task in tasks]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def threads(jobs: int) -> int:
    """Threads per process if `jobs` processes share the cores."""
    return max(1, cores() // jobs)


def summarise(rows: Iterable[Row], kind: Sequence[str], figures: Sequence[str]) -> list[Row]:
    """Mean and standard deviation of the figures over the seeds of each kind, in the order of the rows.

    Rows of one kind agree in the fields `kind`. A summary has these fields, `seeds` and the figures.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[field] for field in kind), []).append(row)
    return [
        dict(zip(kind, values, strict=True))
        | {"seeds": len(group)}
        | {key: mean_and_std([row[key] for row in group]) for key in figures}
        for values, group in groups.items()
    ]


def mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """`mean` and `std`, the sample standard deviation, which is None for a single value."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if values[1:] else None}


def save_samples(
    path: Path, folders: dict[str, Path], budget: Budget, columns: int, above: Tensor | None = None
) -> Path:
    """Save a picture with a row of samples per run directory, by title, all of seed 0.

    `above`: further images (columns, C, H, W) for a row of training images at the top.
    """
    rows, titles = ([] if above is None else [above]), ([] if above is None else ["training images"])
    for title, folder in folders.items():
        steps = json.loads((folder / NOTE).read_text())["wanted"]["steps"]
        rows.append(load(folder).sample(columns, sampler=SAMPLER, steps=steps, spacing=budget.spacing))
        titles.append(title)
    return save_picture(plot_images(torch.stack(rows), rows=titles), path)
