"""What a run reports: metrics.jsonl, TensorBoard, Weights & Biases, preview images and broken files."""

import contextlib
import errno
import functools
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.common.distributed import gather, is_main, print_on_main, rank, world_size
from ddpm.common.errors import UserError, first_line, require
from ddpm.common.files import atomic_write
from ddpm.common.pixels import numbered, save_grid
from ddpm.data.datasets import ImageDataset, Report
from ddpm.data.stream import StreamDataset
from ddpm.interop.card import add_samples
from ddpm.interop.diffusers import Student
from ddpm.model import Model, blocks
from ddpm.training.batches import Batch
from ddpm.training.config import TrainingConfig
from ddpm.training.step import Learner

MEAN_OF = 1024  # images of the dataset, at most, whose mean colour stands for all
AT_ONCE = 16  # of them in memory


@dataclass
class Progress:
    """How far a run is, and the sums since its last log line; part of the checkpoint.

    images: drawn so far, which is also the place in the data; the batch size may have changed on the way.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    counted: int = 0

    def count(self, loss: float, norm: float) -> None:
        """Add the numbers of a step to the sums."""
        self.loss_sum += loss
        self.norm_sum += norm
        self.counted += 1

    def means(self) -> tuple[float, float]:
        """Return the mean loss and gradient norm since the last call, NaN if every step was skipped."""
        counted = self.counted or math.nan
        means = self.loss_sum / counted, self.norm_sum / counted
        self.loss_sum = self.norm_sum = 0.0
        self.counted = 0
        return means


class PendingStep:
    """A step whose `numbers` (loss, gradient norm, requests to stop) are still on their way from the device."""

    def __init__(self, step: int, batch: Batch, numbers: Tensor):
        self.step, self.batch = step, batch
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = None
        if numbers.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Wait for the numbers and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


class Timer:
    """Steps and seconds since the last lap, without the time before a restart."""

    def __init__(self, step: int):
        self.step, self.since = step, time.monotonic()

    def lap(self, progress: Progress) -> tuple[int, float]:
        """Return the steps and seconds since the last lap, and add the seconds to the run's."""
        now = time.monotonic()
        steps, seconds = progress.step - self.step, now - self.since
        self.step, self.since = progress.step, now
        progress.seconds += seconds
        return steps, seconds

    def restart(self) -> None:
        self.since = time.monotonic()


def size_of(dataset: ImageDataset) -> int | None:
    """Return how many images a dataset holds, or None for a stream whose length is unknown before its end."""
    try:
        return len(dataset)
    except UserError:
        return None


@torch.no_grad()
def log_record(progress: Progress, learning_rate: float, learner: Learner, skipped: int) -> dict[str, Any]:
    """Return the numbers of a log line, and start its sums again.

    ema_drift = ‖θ_EMA - θ‖ / ‖θ‖: how far the average trails; it falls as training settles.
    """
    weights, averages = learner.optimizer.parameters, list(learner.ema.parameters.values())
    norm = float(torch.nn.utils.get_total_norm(weights))
    distance = float(torch.nn.utils.get_total_norm(torch._foreach_sub(list(weights), averages)))
    loss, gradient_norm = progress.means()
    record = {
        "step": progress.step,
        "images": progress.images,
        "loss": loss,
        "gradient_norm": gradient_norm,
        "learning_rate": learning_rate,
        "weight_norm": norm,
        "ema_drift": distance / max(norm, math.ulp(1.0)),
        "skipped": skipped,
        "seconds": round(progress.seconds, 2),
    }
    if learner.optimizer.scales_loss:
        record["loss_scale"] = float(learner.optimizer.scale)
    return record


def progress_bar(progress: Progress, training: TrainingConfig) -> tqdm:
    """Return a bar that counts images, shown in the main process."""
    return tqdm(
        total=progress.images + (training.steps - progress.step) * training.batch_size,
        initial=progress.images,
        unit=" images",
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        disable=not is_main(),
    )


class Previews:
    """The previews of a run: samples of fixed seeds in RUN/samples, of which the newest is in the model card.

    Args:
        run: the run directory.
        dataset: its mean colours are compared with those of the previews.
        training: of the run.
    """

    def __init__(self, run: Path, dataset: ImageDataset, training: TrainingConfig):
        self.run, self.dataset, self.training = run, dataset, training

    def draw(self, model: Model) -> Tensor:
        """Sample the images of a preview, (N, C, H, W) in [-1, 1]; every process samples some of the batches.

        A student takes its own number of steps.
        """
        training, mine = self.training, []
        steps = model.usual_steps(training.preview_steps)
        for number, block in enumerate(blocks(range(training.preview_images), model.default_batch_size)):
            if number % world_size() == rank():
                mine += list(model.sample_batches(block, steps=steps, seed=training.seed))
        return torch.cat([images for _, images in sorted(gather(mine), key=lambda part: part[0][0])])

    @functools.cached_property
    def means(self) -> Tensor | None:
        """The mean of each channel of the data. It reads hundreds of images, so only runs with previews ask for it."""
        return channel_means(self.dataset)

    def save(self, images: Tensor, step: int) -> dict[str, float]:
        """Write RUN/samples/NNNNNN.png; return how far its mean colours are from the data's: a tint shows first."""
        save_grid(images, self.run / "samples" / f"{step:06d}.png", overwrite=True)
        if self.means is None:
            return {}
        drift = images.double().mean((0, 2, 3)) - self.means
        return {f"channel_{index}_drift": round(value, 5) for index, value in enumerate(drift.tolist())}

    def show(self, step: int, student: Student | None) -> None:
        """Put the newest preview into the card of RUN/model, but none of a later step (left from before a rollback)."""
        training, previews = self.training, [path for path in numbered(self.run / "samples") if int(path.stem) <= step]
        if previews:
            caption = f"After {int(previews[-1].stem):,} steps: the first images of seed {training.seed}, none of them "
            steps, sampler = (student.steps, student.sampler) if student else (training.preview_steps, "DPM-Solver++")
            caption += f"chosen; {steps} steps of {sampler}."
            add_samples(self.run / "model", previews[-1], caption)


def channel_means(dataset: ImageDataset) -> Tensor | None:
    """Return the mean of each channel in [-1, 1], over images spread evenly through the dataset; None for a stream."""
    if isinstance(dataset, StreamDataset):
        return None
    chosen = range(0, len(dataset), -(-len(dataset) // MEAN_OF))
    channels, height, width = dataset.image_shape
    total = torch.zeros(channels, dtype=torch.int64)
    for start in range(0, len(chosen), AT_ONCE):
        pixels, _ = dataset.batch(chosen[start : start + AT_ONCE])
        total += pixels.sum((0, 2, 3)).cpu()
    return total.double() / (len(chosen) * height * width) / 127.5 - 1


class BrokenFileReporter:
    """Prints the broken files of a report, each once, no matter which process met it."""

    def __init__(self, report: Report):
        self.report = report
        self._told: set[str] = set()

    def tell(self) -> None:
        """Print the files that were met since the last call. Every process must call it at once."""
        news = Report(self.report.source)
        met = gather(list(self.report.skipped))  # a copy: the thread that draws ahead may add to the list
        for name, reason in met:
            if name not in self._told:
                news.skip(name, reason)
        self._told.update(name for name, _ in met)
        if text := news.summary():
            print_on_main(text)


class Tracking:
    """Writes each record as a line of RUN/metrics.jsonl, and its numbers to the other loggers.

    Args:
        run: the run directory.
        loggers: "tensorboard" and "wandb". TensorBoard is left out if it is not installed.
        step: the run resumes from here; later records of an interrupted run are cut away.
        config: shown with the curves.
    """

    def __init__(self, run: Path, loggers: Sequence[str], step: int, config: dict[str, Any]):
        self.path = run / "metrics.jsonl"
        cut_back(self.path, step)
        self._handle = self.path.open("ab", buffering=0)  # unbuffered, so that a full disk is noticed at once
        self._tensorboard = self._wandb = None
        if "tensorboard" in loggers and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        if "wandb" in loggers:
            with wandb_explained() as wandb:
                self._wandb = wandb.init(
                    project="ddpm", dir=str(run), name=run.name, id=wandb_id(run), resume="allow", config=config
                )

    def log(self, values: dict[str, float | int | str]) -> None:
        """Write one record; it must hold "step"."""
        line = (json.dumps(values) + "\n").encode()
        if self._handle.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, global_step=int(numbers["step"]))
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=int(numbers["step"]))

    def sync(self) -> None:
        """Flush the log to the disk, so that a checkpoint is never ahead of it."""
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        self._handle.close()
        with contextlib.suppress(OSError):  # the run has reported a full disk already, in a more useful line
            if self._tensorboard is not None:
                self._tensorboard.close()
        with contextlib.suppress(OSError):
            if self._wandb is not None:
                self._wandb.finish()


def cut_back(path: Path, step: int) -> None:
    """Keep the records up to `step`, without lines that a kill cut short or the disk damaged."""
    if path.exists():
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()  # as `log` writes
        kept = [line for line in lines if line.isascii() and record_step(line) <= step]
        atomic_write(path, "".join(line + "\n" for line in kept), durable=True)


def record_step(line: str) -> float:
    """Return the step of a line of the log; infinity if the line is damaged."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def check_loggers(loggers: Sequence[str]) -> None:
    """Raise UserError if a logger cannot start, before anything is written: W&B is missing, or nobody is logged in."""
    if "wandb" in loggers:
        with wandb_explained() as wandb:
            wandb.login()  # asks for the key in a terminal; does nothing offline


@contextlib.contextmanager
def wandb_explained() -> Iterator[ModuleType]:
    """Give the module wandb; inside, its errors become UserErrors that say what to do."""
    wandb = require("wandb", "track")
    try:
        yield wandb
    except wandb.Error as error:
        advice = "run `wandb login`, or set WANDB_MODE=offline"
        raise UserError(f"Weights & Biases does not start: {first_line(error).rstrip('.')}; {advice}") from error


def wandb_id(run: Path) -> str:
    """Return the run's id at wandb. It is kept in the run directory, so that a resumed run is the same one there."""
    path = run / "wandb_id"
    if not path.exists():
        atomic_write(path, os.urandom(4).hex(), durable=True)
    return path.read_text().strip()
