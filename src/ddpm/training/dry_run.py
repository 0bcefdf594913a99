"""`--dry-run`: what a run would cost, measured by a few of its own steps."""

import contextlib
import math
import time
from pathlib import Path

import torch

from ddpm.networks.inference import count_flops
from ddpm.training.compute import reproducible_kernels
from ddpm.training.config import Config
from ddpm.training.guards import StopRequest
from ddpm.training.loop import Loop, size_of
from ddpm.training.processes import launch
from ddpm.training.trainer import Run

WARM_UP, FEWEST = 3, 5  # steps
LEAST_SECONDS = 2.0  # a card takes many steps in that time, and its queue of batches comes to rest


def dry_run(config: Config, *, init: str | Path | None = None) -> str:
    """A page of figures: parameters, FLOPs, memory, speed and time. Nothing is written."""
    accelerator = launch()
    run = Run(config, Path(), accelerator, init=init, resume=False, evaluator=None)
    loop, training = run.loop, run.config.training
    a_step = seconds_a_step(loop)
    speed = training.batch_size / a_step
    forward = count_flops(run.network)
    images, size = training.steps * training.batch_size, size_of(run.dataset)
    epochs = "" if size is None else f", {images / size:,.1f} epochs"
    return "\n".join(
        [
            f"parameters          {sum(p.numel() for p in run.network.parameters()):,}",
            f"FLOPs an image      {forward / 1e9:.3g} G forward, {3 * forward / 1e9:.3g} G forward and backward",
            f"memory              {run.memory.total(loop.micro_batch) / 2**30:.2f} GiB",
            f"engine              {loop.engine}",
            f"speed               {speed:,.1f} images/s ({3 * forward * speed / 1e9:,.0f} GFLOP/s)",
            f"training            {training.steps:,} steps, {images:,} images{epochs}",
            f"time                {duration(training.steps * a_step)}",
        ]
    )


def seconds_a_step(loop: Loop) -> float:
    """What a step takes with all that belongs to it: drawing the batch, gradient, clipping, Adam, averaging.

    Steps follow each other as in a run: the next is queued before the numbers of the last are waited for, batches are
    drawn ahead where the loop does so, and the kernels are the reproducible ones. The loop's weights change.
    Every process takes as many steps, for a step waits for all of them.
    """
    device = loop.engine.device
    loop.network.train()
    with reproducible_kernels(device), contextlib.closing(loop.batches.steps(0, device)) as feed:

        def take(steps: range) -> None:
            pending = None
            for step in steps:
                last, pending = pending, loop.step(step, next(feed), StopRequest())
                if last is not None:
                    last.read()
            if pending is not None:
                pending.read()

        take(range(WARM_UP))
        begin = time.monotonic()
        take(range(WARM_UP, WARM_UP + FEWEST))
        enough = math.ceil(FEWEST * LEAST_SECONDS / (time.monotonic() - begin))
        steps = max(FEWEST, int(loop.accelerator.gather(torch.tensor([enough], device=device)).max()))
        take(range(WARM_UP + FEWEST, WARM_UP + steps))
        return (time.monotonic() - begin) / steps


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds, the two largest that matter."""
    units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    for index, (size, name) in enumerate(units):
        if seconds >= size or size == 1:
            whole, rest = divmod(round(seconds), size)
            if index + 1 == len(units):
                return f"{whole} {name}"
            return f"{whole} {name} {rest // units[index + 1][0]} {units[index + 1][1]}"
    return "0 s"
