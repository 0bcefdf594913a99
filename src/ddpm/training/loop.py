"""The training loop: Ho et al. 2020, algorithm 1, with what a long run needs around it."""

import contextlib
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from ddpm.common.errors import RunStopped, UserError
from ddpm.data.datasets import ImageDataset
from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.timestep_samplers import LossAwareSampler
from ddpm.networks.unet import UNet
from ddpm.training.batches import Batch, Batches
from ddpm.training.compute import Engine
from ddpm.training.config import TrainingConfig
from ddpm.training.guards import NonFiniteGuard, StopRequest, diagnose, ema_drift, weight_norm
from ddpm.training.optimizer import EMA, Optimizer, learning_rate

Log = Callable[[dict[str, Any]], None]


@dataclass
class Progress:
    """How far a run is, and the sums since its last log line; travels in the checkpoint.

    images: drawn so far, and so the place in the data; the batch may have changed on the way.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    counted: int = 0


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers are still on their way from the device: (loss, gradient norm, stop requests)."""

    step: int
    batch: Batch
    numbers: Tensor
    arrived: Any

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


def size_of(dataset: ImageDataset) -> int | None:
    """How many images a set holds, where it knows: a streamed one may not before its end."""
    try:
        return len(dataset)
    except UserError:
        return None


class Timer:
    """Steps and seconds since the last lap, less what lies before a restart."""

    def __init__(self, step: int):
        self.step, self.since = step, time.monotonic()

    def lap(self, step: int) -> tuple[int, float]:
        now = time.monotonic()
        steps, seconds = step - self.step, now - self.since
        self.step, self.since = step, now
        return steps, seconds

    def restart(self) -> None:
        self.since = time.monotonic()


class Loop:
    """Steps of optimization, from `progress.step` on.

    The host never waits for the step it has just queued: a step's loss is read while the next one runs, which is also
    when a step that was skipped for its numbers, or a request to stop, is noticed.
    """

    def __init__(
        self,
        config: TrainingConfig,
        diffusion: DiffusionConfig,
        network: UNet,
        batches: Batches,
        engine: Engine,
        accelerator: Accelerator,
        health: NonFiniteGuard,
    ):
        self.config, self.engine, self.accelerator, self.health = config, engine, accelerator, health
        self.network, self.batches = network, batches
        self.diffusion, self.objective = diffusion.build(), diffusion.build_loss()
        self.ema = EMA(network, config.ema_decay, config.ema_warmup)
        self.optimizer = Optimizer(network, config.grad_clip, engine.scales_loss)
        self.micro_batch = engine.micro_batch
        self.progress = Progress()
        if engine.compile:
            network.compile()
        self.wrapped = accelerator.prepare_model(network) if engine.processes > 1 else network

    def run(self, request: StopRequest, log: Log, after_step: Callable[[int], None]) -> int | None:
        """Train to `config.steps`; returns None, or the signal on whose request it stopped before.

        log: given the numbers of every `log_every` steps. after_step: called with the count of steps done, where
        checkpoints, previews and evaluation are made; all numbers up to that step have been read by then.
        """
        self.network.train()
        if self.engine.processes > 1:
            self._fit_micro_batch()
        lag = 1 if self.engine.device.type == "cuda" else 0
        pending: deque[PendingStep] = deque()
        clock = Timer(self.progress.step)
        with self._bar() as bar, contextlib.closing(self.batches.steps(self.progress.step, self.engine.device)) as feed:
            while self.progress.step < self.config.steps:
                pending.append(self.step(self.progress.step, next(feed), request))
                self.progress.step = done = self.progress.step + 1
                self.progress.images += self.config.batch_size
                pauses, logs = self._pauses(done), done % self.config.log_every == 0 or done == self.config.steps
                stop = False
                while len(pending) > (0 if pauses or logs else lag):
                    stop |= self._settle(pending.popleft())
                bar.update(self.config.batch_size)
                if logs:
                    record = self._record(clock)
                    bar.set_postfix_str(f"step {done:,} loss {record['loss']:.4f}", refresh=False)
                    log(record)
                if pauses:
                    self._count_time(clock)
                    after_step(done)
                    self.network.train()
                    clock.restart()
                if request.signal is not None and self.engine.processes == 1:  # several must agree first, in a step
                    stop = True
                if stop:
                    while pending:
                        self._settle(pending.popleft())
                    self._count_time(clock)
                    return request.signal or signal.SIGTERM  # of another process, where this one was not asked
        return None

    def step(self, step: int, batch: Batch, request: StopRequest) -> PendingStep:
        """One step of optimization: gradient, clipping, Adam, average."""
        losses = self._gradients(batch)
        share = (losses * batch.weight).sum() / self.config.batch_size
        asked = torch.full(
            (), float(request.signal is not None), device=share.device
        )  # filled there: no copy to wait for
        numbers = torch.stack([share, asked])
        if self.engine.processes > 1:
            numbers = self.accelerator.reduce(numbers, "sum")
        norm = self.optimizer.step(learning_rate(self.config, step), numbers[0])
        self.ema.update(self.network)
        self.optimizer.zero_grad()
        if isinstance(self.batches.draw, LossAwareSampler):
            self._teach(self.batches.draw, step, losses)
        numbers = torch.stack([numbers[0], norm, numbers[1]]).to("cpu", non_blocking=True)
        arrived = None
        if self.engine.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return PendingStep(step, batch, numbers, arrived)

    def _gradients(self, batch: Batch) -> Tensor:
        """Accumulate the gradient of the batch; returns each image's loss (n,). What does not fit is cut smaller."""
        while True:
            try:
                return self._accumulate(batch)
            except torch.OutOfMemoryError as error:
                self.optimizer.zero_grad()
                if self.engine.processes > 1:  # the others wait for this gradient: too late to change
                    raise RunStopped(
                        "out of memory; go on with --resume and a smaller --training.micro_batch"
                    ) from error
                self._halve_micro_batch()

    def _halve_micro_batch(self) -> None:
        if self.micro_batch == 1:
            raise RunStopped("out of memory with a single image: a smaller network or image is needed")
        self.micro_batch = -(-self.micro_batch // 2)
        self.accelerator.print(f"out of memory: the micro-batch is now {self.micro_batch}, the batch as before")
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fit_micro_batch(self) -> None:
        """Try a micro-batch, without the others, until it fits; then take the smallest of all processes'."""
        batch = self.batches.at(self.progress.step).to(self.engine.device)
        while True:
            try:
                with self.accelerator.no_sync(self.wrapped):
                    self._losses_of(self.wrapped, next(batch.split(self.micro_batch))).sum().backward()
                break
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad()
                self._halve_micro_batch()
        self.optimizer.zero_grad()
        fits = torch.tensor([self.micro_batch], device=self.engine.device)
        self.micro_batch = int(self.accelerator.gather(fits).min())

    def _accumulate(self, batch: Batch) -> Tensor:
        losses = []
        parts = list(batch.split(self.micro_batch))
        # DDP takes the mean over processes of what is summed here, so the sum is divided by this process's share
        share = self.config.batch_size / self.engine.processes
        for part in parts:
            alone = part is not parts[-1] and self.engine.processes > 1
            with self.accelerator.no_sync(self.wrapped) if alone else contextlib.nullcontext():
                loss = self._losses_of(self.wrapped, part)
                ((loss * part.weight).sum() / share * self.optimizer.scale).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def _losses_of(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of each image (n,), before importance weights."""
        x_t = self.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
        output = network(x_t.to(self.engine.dtype), batch.t.float(), batch.labels, batch.dropout_keys)
        return self.objective(output, batch.x_0, x_t, batch.t, batch.noise)

    @torch.no_grad()
    def _teach(self, draw: LossAwareSampler, step: int, losses: Tensor) -> None:
        """A loss-aware draw learns from the whole global batch, so that it stays the same in every process."""
        every = losses
        if self.engine.processes > 1:  # a sum, not a gathering, which wants equal shares
            mine = self.batches.positions
            every = losses.new_zeros(self.config.batch_size)
            every[mine.start : mine.stop] = losses
            every = self.accelerator.reduce(every, "sum")
        everywhere = torch.arange(self.config.batch_size)
        t, _ = draw.draw(self.config.seed, step, everywhere, self.config.batch_size)
        if bool(torch.isfinite(every).all()):
            draw.update(t, every.cpu())

    def _settle(self, pending: PendingStep) -> bool:
        """Take in a step's numbers; True where some process was asked to stop."""
        loss, norm, stops = pending.read()
        if math.isfinite(loss) and math.isfinite(norm):
            self.health.good()
            self.progress.loss_sum += loss
            self.progress.norm_sum += norm
            self.progress.counted += 1
        elif not (math.isfinite(loss) and self._scale_overflowed()):
            self._unhealthy(pending)
        return stops > 0

    def _scale_overflowed(self) -> bool:
        """Whether a gradient may have overflowed for its loss scale alone, which is how a scale finds its size."""
        return self.engine.scales_loss and float(self.optimizer.scale) >= 1

    def _unhealthy(self, pending: PendingStep) -> None:
        too_many = self.health.bad()
        rank, step = self.accelerator.process_index, pending.step
        path = self.health.set_aside(pending.batch, self.config.seed, step, rank)
        self.accelerator.print(f"step {step + 1}: loss or gradient not finite; skipped, batch set aside in {path}")
        if too_many:
            parts = pending.batch.split(self.micro_batch)
            found = [diagnosis for part in parts if (diagnosis := diagnose(self.network, self._losses_of, part))]
            everywhere = gather_object(found[:1]) if self.engine.processes > 1 else found
            if rank > 0:
                raise SystemExit(1)  # all stop here; the first process says why
            raise self.health.stopped(everywhere, learning_rate(self.config, step))

    def _pauses(self, done: int) -> bool:
        config = self.config
        due = (config.checkpoint_every, config.preview_every, config.evaluate_every)
        return done == config.steps or any(every and done % every == 0 for every in due)

    def _record(self, clock: Timer) -> dict[str, Any]:
        """One line of the log; the sums start again."""
        progress, parameters = self.progress, self.optimizer.parameters
        counted = max(1, progress.counted)
        steps, seconds = self._count_time(clock)
        record = {
            "step": progress.step,
            "images": progress.images,
            "loss": progress.loss_sum / counted if progress.counted else math.nan,
            "gradient_norm": progress.norm_sum / counted if progress.counted else math.nan,
            "learning_rate": learning_rate(self.config, progress.step - 1),
            "weight_norm": weight_norm(parameters),
            "ema_drift": ema_drift(parameters, list(self.ema.parameters.values())),
            "skipped": self.health.skipped,
            "images_per_second": round(steps * self.config.batch_size / max(seconds, 1e-9), 2),
            "seconds": round(progress.seconds, 2),
        }
        if size := size_of(self.batches.loader.dataset):
            record["epoch"] = round(record["images"] / size, 4)
        if self.engine.scales_loss:
            record["loss_scale"] = float(self.optimizer.scale)
        progress.loss_sum = progress.norm_sum = 0.0
        progress.counted = 0
        return record

    def _count_time(self, clock: Timer) -> tuple[int, float]:
        steps, seconds = clock.lap(self.progress.step)
        self.progress.seconds += seconds
        return steps, seconds

    def _bar(self) -> tqdm:
        progress = self.progress
        return tqdm(
            total=progress.images + (self.config.steps - progress.step) * self.config.batch_size,
            initial=progress.images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 15,
            disable=not self.accelerator.is_main_process,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that must be kept to go on exactly, by file."""
        parts = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if isinstance(self.batches.draw, LossAwareSampler):
            parts["timestep_sampler"] = self.batches.draw.state_dict()
        return parts

    def state(self) -> dict[str, Any]:
        """The same, what is not a tensor."""
        health = {"skipped": self.health.skipped, "in_a_row": self.health.in_a_row}
        return {"progress": asdict(self.progress), "health": health, "micro_batch": self.micro_batch}

    def restore(self, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """The inverse of `tensors` and `state`."""
        self.network.load_state_dict(parts["network"])
        self.ema.load_state_dict(parts["ema"])
        self.optimizer.load_state_dict(parts["optimizer"])
        if isinstance(self.batches.draw, LossAwareSampler):
            self.batches.draw.load_state_dict(parts["timestep_sampler"])
        earlier = {"images": state["progress"]["step"] * self.config.batch_size}  # of checkpoints that did not say
        self.progress = Progress(**earlier | state["progress"])
        self.health.skipped, self.health.in_a_row = state["health"]["skipped"], state["health"]["in_a_row"]
