"""What a run costs, measured by a few of its own steps: `--dry-run` prints it, and `--minutes` fits the run to it."""

import contextlib
import math
import time
from pathlib import Path

from ddpm.common.distributed import gather
from ddpm.common.errors import UserError
from ddpm.networks.inference import count_flops
from ddpm.training.compute import reproducible_kernels
from ddpm.training.config import Config, TrainingConfig
from ddpm.training.tracking import size_of
from ddpm.training.trainer import Trainer

WARM_UP, FEWEST = 3, 5  # steps
FEWEST_STEPS = 10  # of a run that is fitted to a time
LEAST_SECONDS = 2.0  # a GPU takes many steps in that time, and its queue of batches settles


def dry_run(config: Config, *, init: str | Path | None = None) -> str:
    """Return a table: parameters, FLOPs, memory, speed and time. Nothing is written."""
    return cost(Trainer(config, Path(), init=init))


def cost(trainer: Trainer) -> str:
    """Return the table of `dry_run` for a run that has not begun; its weights change."""
    training = trainer.config.training
    per_step = seconds_per_step(trainer)
    speed = training.batch_size / per_step
    forward = count_flops(trainer.network)
    images, size = training.steps * training.batch_size, size_of(trainer.dataset)
    epochs = "" if size is None else f", {images / size:,.1f} epochs"
    return trainer.notes() + "\n".join(
        [
            f"parameters          {sum(p.numel() for p in trainer.network.parameters()):,}",
            f"FLOPs an image      {forward / 1e9:.3g} G forward, {3 * forward / 1e9:.3g} G forward and backward",
            f"memory              {trainer.memory.total(trainer.learner.micro_batch) / 2**30:.2f} GiB",
            f"engine              {trainer.plan}{trainer.plan.why(training.precision)}",
            f"speed               {speed:,.1f} images/s ({3 * forward * speed / 1e9:,.0f} GFLOP/s)",
            f"training            {training.steps:,} steps, {images:,} images{epochs}",
            f"time                {duration(training.steps * per_step)}",
        ]
    )


def fit_to_minutes(config: Config, minutes: float, *, init: str | Path | None = None) -> Config:
    """Return the configuration with as many steps as take `minutes` on this machine; see `fitted`."""
    return config.model_copy(update={"training": fitted(Trainer(config, Path(), init=init), minutes)})


def fitted(trainer: Trainer, minutes: float) -> TrainingConfig:
    """Return the section of a run that has not begun with as many steps as take `minutes`, previews included.

    The warm-up, the memory of the average, and the intervals of checkpoints and previews keep their proportion to the
    run. The time of starting and of evaluations comes on top.

    Raises UserError if not even `FEWEST_STEPS` steps fit.
    """
    per_step, old = max(gather([seconds_per_step(trainer)])), trainer.config.training
    previews = old.steps // old.preview_every if old.preview_every else 0
    # a forward pass is a third of a training step's work
    preview = old.preview_images * old.preview_steps * per_step / old.batch_size / 3
    steps = round((60 * minutes - previews * preview) / per_step)
    if steps < FEWEST_STEPS:
        enough = math.ceil((FEWEST_STEPS * per_step + previews * preview) / 60)
        times = f"a step takes {per_step:.2g} s and a preview {preview:.2g} s"
        raise UserError(f"a run of {minutes:g} min is too short: {times} here; give it {enough} min or more")
    return scaled(old, steps)


def scaled(training: TrainingConfig, steps: int) -> TrainingConfig:
    """Return a run of `steps` steps of which everything takes the same fraction as before."""
    ratio = steps / training.steps
    return training.model_copy(
        update={
            "steps": steps,
            "warmup": round(training.warmup * ratio),
            "ema_decay": max(0.0, round(1 - (1 - training.ema_decay) / ratio, 6)),
            "checkpoint_every": max(1, round(training.checkpoint_every * ratio)),
            "preview_every": training.preview_every and max(1, round(training.preview_every * ratio)),
        }
    )


def seconds_per_step(trainer: Trainer) -> float:
    """Measure a whole step: drawing the batch, gradient, clipping, Adam, averaging.

    Steps follow each other as in a run: the next one is queued before the numbers of the last are read, batches are
    drawn ahead, and the kernels are the reproducible ones. The weights change. Every process takes as many steps,
    because a step waits for all of them.
    """
    trainer.network.train()
    feed = contextlib.closing(trainer.batches.steps(0))
    with reproducible_kernels(trainer.device), feed as batches:

        def take(steps: int) -> None:
            pending = None
            for _ in range(steps):
                last, pending = pending, trainer.step(next(batches))
                if last is not None:
                    last.read()
            if pending is not None:
                pending.read()

        take(WARM_UP)
        begin = time.monotonic()
        take(FEWEST)
        enough = math.ceil(FEWEST * LEAST_SECONDS / (time.monotonic() - begin))
        steps = max([FEWEST, *gather([enough])])
        take(steps - FEWEST)
        return (time.monotonic() - begin) / steps


def duration(seconds: float) -> str:
    """Format seconds by the two largest units of days, hours, minutes and seconds."""
    units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    for index, (size, name) in enumerate(units):
        if seconds >= size or size == 1:
            whole, rest = divmod(round(seconds), size)
            if index + 1 == len(units):
                return f"{whole} {name}"
            return f"{whole} {name} {rest // units[index + 1][0]} {units[index + 1][1]}"
    return "0 s"
