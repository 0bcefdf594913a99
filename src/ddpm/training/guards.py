"""Guards of a run: non-finite numbers are diagnosed, and Ctrl-C or SIGTERM stop it between two steps."""

import contextlib
import json
import math
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from ddpm.common.distributed import gather, is_lost_process, is_main, print_on_main, rank
from ddpm.common.errors import RunStopped
from ddpm.common.files import atomic_write
from ddpm.training.batches import Batch
from ddpm.training.checkpoint import write_tensors, writing
from ddpm.training.config import TrainingConfig
from ddpm.training.optimizer import learning_rate
from ddpm.training.step import Learner
from ddpm.training.tracking import PendingStep, Progress


class NonFiniteGuard:
    """Counts the skipped steps of a run and keeps their batches in RUN/set_aside/.

    Args:
        folder: RUN/set_aside.
        training: of the run; more than `max_bad_steps` skipped steps in a row end it.
    """

    def __init__(self, folder: Path, training: TrainingConfig):
        self.folder, self.training = folder, training
        self.skipped = self.in_a_row = 0

    def settle(self, pending: deque[PendingStep], in_flight: int, progress: Progress, learner: Learner) -> bool:
        """Read the numbers of all steps but the last `in_flight`; return whether a process was asked to stop.

        Raises RunStopped, or SystemExit in processes other than the first, if too many steps in a row are skipped.
        """
        stop = False
        while len(pending) > in_flight:
            step = pending.popleft()
            loss, norm, asked = step.read()
            stop |= asked > 0
            if math.isfinite(loss) and math.isfinite(norm):
                self.in_a_row = 0
                progress.count(loss, norm)
                continue
            # In fp16 a gradient may overflow for its loss scale alone, which is how the scale finds its size.
            adapts = learner.optimizer.scales_loss and float(learner.optimizer.scale) >= 1
            if not (math.isfinite(loss) and adapts):
                self.skip(step.step, step.batch, learner)
        return stop

    def skip(self, step: int, batch: Batch, learner: Learner) -> None:
        """Count a skipped step and save its batch; end the run if it is one too many, with a diagnosis."""
        self.skipped += 1
        self.in_a_row += 1
        path = self.set_aside(batch, step)
        print_on_main(f"step {step + 1}: loss or gradient not finite; skipped, batch set aside in {path}")
        if self.in_a_row > self.training.max_bad_steps:
            parts = batch.split(learner.micro_batch)
            found = [reason for part in parts if (reason := diagnose(learner.network, learner.losses, part))]
            everywhere = gather(found[:1])
            if not is_main():
                raise SystemExit(1)  # all stop here; the first process says why
            raise self.stopped(everywhere, learning_rate(self.training, step))

    def set_aside(self, batch: Batch, step: int) -> Path:
        """Save this process's part of a batch for later inspection."""
        path = self.folder / f"{step:06d}-{rank()}.safetensors"
        about = {"seed": self.training.seed, "step": step, "images": len(batch)}
        with writing(str(path), lambda: f"checkpoints are kept in {self.folder.parent / 'checkpoints'}"):
            self.folder.mkdir(exist_ok=True)
            write_tensors(path, batch.tensors())
            atomic_write(path.with_suffix(".json"), json.dumps(about), durable=True)
        return path

    def stopped(self, diagnoses: list[str], rate: float) -> RunStopped:
        """Return the error that ends the run; `diagnoses` are the findings of the processes."""
        cause = diagnoses[0] if diagnoses else "the values were finite when recomputed, which suggests a hardware fault"
        return RunStopped(
            f"{self.in_a_row} steps in a row had a loss or gradient that is not finite: {cause}; the learning rate was "
            f"{rate:.2g}; their batches are in {self.folder}, the last good checkpoint in "
            f"{self.folder.parent / 'checkpoints'}; a smaller training.learning_rate or fp32 may help"
        )


def diagnose(network: nn.Module, losses_of: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> str | None:
    """Find the first layer output or gradient of a batch that is not finite, and its timesteps.

    `losses_of`: (network, batch) -> the loss of each image (n,). Returns None if all is finite.
    """
    bad_inputs = [name for name, tensor in batch.tensors().items() if not finite(tensor)]
    if bad_inputs:
        return f"the batch itself holds numbers that are not finite ({', '.join(bad_inputs)})"
    bad_weights = [name for name, p in network.named_parameters() if not finite(p)]
    if bad_weights:
        return f"the weights of {layer_of(bad_weights[0])} are not finite"
    found: list[str] = []

    def note(what: str, tensors: Iterable[Tensor | None]) -> None:
        if not found and not all(tensor is None or finite(tensor) for tensor in tensors):
            found.append(what)

    hooks = []
    for name, layer in network.named_modules():
        if not list(layer.children()):
            output, passed = f"the output of layer {name}", f"the gradient that layer {name} passes back"
            hooks.append(layer.register_forward_hook(lambda _layer, _inputs, out, what=output: note(what, [out])))
            hooks.append(layer.register_full_backward_hook(lambda _layer, back, _out, what=passed: note(what, back)))
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code calls no hooks
            losses = losses_of(network, batch)
        bad = ~torch.isfinite(losses.detach())
        if found or bool(bad.any()):
            images = bad if bool(bad.any()) else torch.ones_like(bad)
            return f"{found[0] if found else 'the loss'} is not finite, for images at t = {span(batch.t[images])}"
        with warnings.catch_warnings(action="ignore"):  # the first layer has no input gradient, and its hook warns
            losses.sum().backward()
    finally:
        for handle in hooks:
            handle.remove()
    bad_gradients = [name for name, p in network.named_parameters() if p.grad is not None and not finite(p.grad)]
    network.zero_grad()
    if not found and bad_gradients:
        found.append(f"the gradient of {layer_of(bad_gradients[0])}")
    return f"{found[0]} is not finite, for images at t = {span(batch.t)}" if found else None


def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def layer_of(parameter: str) -> str:
    return "layer " + parameter.rpartition(".")[0]


def span(t: Tensor) -> str:
    """Format a few timesteps in full, many by their range."""
    values = sorted(set(t.tolist()))
    if len(values) <= 6:
        return ", ".join(map(str, values))
    return f"{values[0]} to {values[-1]}"


TERMINATED = 128 + signal.SIGTERM  # the exit code that shells and schedulers expect of a terminated process
STOP_MESSAGE = (
    b"\nStopping after this step; a checkpoint will be saved. Press Ctrl-C again to quit now without saving.\n"
)


class StopRequest:
    """Which signal asked this process to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        with contextlib.suppress(OSError):  # not print: the signal may have interrupted one
            os.write(2, STOP_MESSAGE)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def leave(self, number: int) -> None:
        """End the process as the signal would have: KeyboardInterrupt, or exit code 143."""
        if number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt


@contextlib.contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM is only noted; a second one acts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lost_process_explained(out: Path) -> Iterator[None]:
    """If another process of the run has ended, raise RunStopped with the command that resumes the run."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise RunStopped(
            f"process {rank()} lost another process of the run; resume from the last checkpoint with "
            f"ddpm train --resume {out}"
        ) from error
