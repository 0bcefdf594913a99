"""What a run reports: metrics.jsonl, TensorBoard, Weights & Biases, preview images and broken files."""

import contextlib
import errno
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import gather_object
from torch import Tensor

from ddpm.common.files import atomic_write
from ddpm.common.pixels import save_grid
from ddpm.data.datasets import ImageDataset, Report
from ddpm.data.stream import StreamDataset
from ddpm.model import Model, blocks

MEAN_OF = 1024  # images of the data set, at most, whose mean colour stands for all
AT_ONCE = 16  # of them in memory


def draw_preview(model: Model, num: int, steps: int, seed: int, accelerator: Accelerator) -> Tensor | None:
    """Images 0 … num-1 of `seed` (num, C, H, W), every process drawing its share; None but in the first process."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = []
    for number, block in enumerate(blocks(range(num), model.default_batch_size)):
        if number % processes == rank:
            mine += list(model.sample_batches(block, steps=min(steps, model.diffusion.schedule.timesteps), seed=seed))
    parts = gather_object(mine) if processes > 1 else mine
    if not accelerator.is_main_process:
        return None
    return torch.cat([images for _, images in sorted(parts, key=lambda part: part[0][0])])


def save_preview(images: Tensor, folder: Path, step: int) -> None:
    """RUN/samples/NNNNNN.png."""
    save_grid(images, folder / f"{step:06d}.png", overwrite=True)


def channel_means(dataset: ImageDataset) -> Tensor | None:
    """Mean of each channel in [-1, 1], over images spread evenly through the set; None for one that is streamed."""
    if isinstance(dataset, StreamDataset):
        return None
    chosen = range(0, len(dataset), -(-len(dataset) // MEAN_OF))
    channels, height, width = dataset.image_shape
    total = torch.zeros(channels, dtype=torch.int64)
    for start in range(0, len(chosen), AT_ONCE):
        pixels, _ = dataset.batch(chosen[start : start + AT_ONCE])
        total += pixels.sum((0, 2, 3)).cpu()
    return total.double() / (len(chosen) * height * width) / 127.5 - 1


def channel_drift(images: Tensor, means: Tensor) -> dict[str, float]:
    """How far the mean of each channel of the previews lies from the data's: a colour tint shows here first."""
    drift = images.double().mean((0, 2, 3)) - means
    return {f"channel_{index}_drift": round(value, 5) for index, value in enumerate(drift.tolist())}


class BrokenFileReporter:
    """Prints the broken files of a report, each once, whichever process met it."""

    def __init__(self, report: Report, accelerator: Accelerator):
        self.report, self.accelerator = report, accelerator
        self._told: set[str] = set()

    def tell(self) -> None:
        """Those met since the last time; to be called in every process at once."""
        met = list(self.report.skipped)  # a copy, for the thread that draws ahead may add to it
        if self.accelerator.num_processes > 1:
            met = gather_object(met)
        news = Report(self.report.source)
        for name, reason in met:
            if name not in self._told:
                news.skip(name, reason)
        self._told.update(name for name, _ in met)
        if text := news.summary():
            self.accelerator.print(text)


class Tracking:
    """One line a call of `log` in RUN/metrics.jsonl, and the same numbers to the other trackers asked for.

    Args:
        run: the run directory.
        trackers: "tensorboard" and "wandb". TensorBoard is left out where it is not installed.
        step: the run goes on from here; what an interrupted run logged beyond it is cut away.
        config: shown beside the curves.
        name: of the run, for wandb.
    """

    def __init__(self, run: Path, trackers: Sequence[str], step: int, config: dict[str, Any]):
        self.path = run / "metrics.jsonl"
        cut_back(self.path, step)
        self._handle = self.path.open("ab", buffering=0)  # nothing waits in a buffer for a disk that is full
        self._others: list[GeneralTracker] = []
        if "tensorboard" in trackers and importlib.util.find_spec("tensorboard"):
            self._others.append(TensorBoardTracker("tensorboard", run, purge_step=step + 1))
        if "wandb" in trackers:
            self._others.append(
                WandBTracker("ddpm", dir=str(run), name=run.name, id=wandb_id(run), resume="allow", config=config)
            )
        for tracker in self._others:
            tracker.start()

    def log(self, values: dict[str, float | int | str]) -> None:
        """Write one record; it must hold "step"."""
        line = (json.dumps(values) + "\n").encode()
        if self._handle.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._others:
            tracker.log(numbers, step=numbers["step"])

    def sync(self) -> None:
        """On the disk, so that a checkpoint never knows more than the log."""
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        self._handle.close()
        for tracker in self._others:
            with contextlib.suppress(OSError):  # of a full disk the run has told already, and more usefully
                tracker.finish()


def cut_back(path: Path, step: int) -> None:
    """Keep the records up to `step`; a last line that a kill cut short goes too, and one that the disk has spoilt."""
    if path.exists():
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()  # as `log` writes
        kept = [line for line in lines if line.isascii() and record_step(line) <= step]
        atomic_write(path, "".join(line + "\n" for line in kept), durable=True)


def record_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def wandb_id(run: Path) -> str:
    """The run's name at wandb, kept in the run directory so that a resumed run is the same one there."""
    path = run / "wandb_id"
    if not path.exists():
        atomic_write(path, os.urandom(4).hex(), durable=True)
    return path.read_text().strip()
