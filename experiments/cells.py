"""Small trainings that are each judged: many side by side, kept when finished, gone on with where they were killed."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write
from ddpm.evaluation.evaluate import evaluate
from ddpm.model import load
from ddpm.samplers import Spacing
from ddpm.training import Config, load_config, train
from experiments.record import cores

SAMPLER = "dpm++"  # in fewer than 20 steps ahead of the default one
NOTE = "cell.json"  # in the run directory of a finished cell


def trained_and_judged(
    config: Config, folder: Path, metrics: Sequence[str], *, num: int, steps: int, spacing: Spacing | None = None
) -> dict[str, Any]:
    """Train in the run directory `folder` and judge with the built-in features; or go on; or read what it came to.

    The model draws `num` images by `steps` steps of `SAMPLER`, with the run's seed, and they are compared with the
    images it was trained on. Returns the figures by name, `weights` (their hash) and `seconds` of training.
    """
    note = folder / NOTE
    wanted = {"config": config.model_dump(mode="json"), "metrics": list(metrics), "num": num, "steps": steps}
    wanted |= {"spacing": spacing} if spacing else {}
    if note.exists() and (found := json.loads(note.read_text()))["wanted"] == wanted:
        return found["row"]
    begun = (folder / "config.yaml").exists()
    if begun and load_config(folder / "config.yaml") != config:
        raise UserError(f"{folder} holds a training of another configuration; move it away, or give another --runs")
    if not (begun and _trained_steps(folder) == config.training.steps):
        train(config, folder, resume=begun, overwrite=not begun)
    sampling = {"num": num, "sampler": SAMPLER, "steps": steps, "spacing": spacing, "seed": config.training.seed}
    model = load(folder)
    report = evaluate(model, config.data.source, metrics=metrics, features="builtin", progress=False, **sampling)
    row = {figure.key: figure.value for figure in report.figures}
    row |= {"weights": model.weights_hash, "seconds": model.provenance["seconds"]}
    atomic_write(note, json.dumps({"wanted": wanted, "row": row}, indent=1).encode())
    return row


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation; None for that of one value."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if values[1:] else None}


def finished(folder: Path) -> bool:
    """Whether a cell was judged here."""
    return (folder / NOTE).exists()


def _trained_steps(folder: Path) -> int | None:
    """How far the model of a run directory is, if there is one."""
    return load(folder, device="cpu").provenance["steps"] if (folder / "model" / "ddpm.json").exists() else None


def side_by_side(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """What `work(*task)` returns for each task as they finish: `jobs` processes at a time, which share the cores.

    Small networks gain little from a second thread, so many processes of few threads are the faster way.
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
    """The threads of each of so many processes."""
    return max(1, cores() // jobs)
