"""`--dry-run`: what a run would cost, measured by a few of its own steps."""

import contextlib
import math
import time
from pathlib import Path

from ddpm.common.distributed import gather
from ddpm.networks.inference import count_flops
from ddpm.training.compute import reproducible_kernels
from ddpm.training.config import Config
from ddpm.training.tracking import size_of
from ddpm.training.trainer import Trainer

WARM_UP, FEWEST = 3, 5  # steps
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
    return "\n".join(
        [
            f"parameters          {sum(p.numel() for p in trainer.network.parameters()):,}",
            f"FLOPs an image      {forward / 1e9:.3g} G forward, {3 * forward / 1e9:.3g} G forward and backward",
            f"memory              {trainer.memory.total(trainer.learner.micro_batch) / 2**30:.2f} GiB",
            f"engine              {trainer.plan}",
            f"speed               {speed:,.1f} images/s ({3 * forward * speed / 1e9:,.0f} GFLOP/s)",
            f"training            {training.steps:,} steps, {images:,} images{epochs}",
            f"time                {duration(training.steps * per_step)}",
        ]
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
