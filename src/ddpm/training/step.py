"""One training step: algorithm 1 of Ho et al. 2020.

repeat
    x_0 ~ q(x_0),  t ~ Uniform({1, …, T}),  ε ~ N(0, I)          the `Batch`
    gradient step on ∇_θ ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²    `train_step`
until converged
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm.common.distributed import all_sum, gather, print_on_main, world_size
from ddpm.common.errors import RunStopped
from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.loss import DiffusionLoss
from ddpm.networks.unet import UNet
from ddpm.training.batches import Batch
from ddpm.training.compute import ComputePlan
from ddpm.training.config import TrainingConfig
from ddpm.training.optimizer import EMA, MUON_DECAY, Muon, Optimizer, muon_parameters

# PyTorch's compiler writes out, as an image in float32, what two kernels use and what has five inputs or more. In the
# derivative of a norm that has up to seven, six of them tiny. So it computes that twice (docs/reports/speed.md).
COMPILER = {"realize_reads_threshold": 8}

Teach = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass
class Learner:
    """The network, and all that changes with it in a step.

    network: with float32 weights; it computes in `dtype`. parallel: the same, wrapped to add up gradients over
    processes. batch_size: images per step, over all processes. micro_batch: images of this process in memory at once.
    teach: (x_t, t, labels) -> what x_0 and the noise in x_t should be, in place of the batch's own (distillation).
    """

    network: UNet
    parallel: nn.Module
    diffusion: GaussianDiffusion
    objective: DiffusionLoss
    optimizer: Optimizer
    ema: EMA
    dtype: torch.dtype
    batch_size: int
    micro_batch: int
    teach: Teach | None = None

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each image, float32 (n,), before the importance weights of t."""
        x_t = self.diffusion.q_sample(batch.x_0, batch.t, batch.noise)  # √ᾱ_t x_0 + √(1-ᾱ_t) ε, Ho et al. eq. 4
        x_0, noise = self.teach(x_t, batch.t, batch.labels) if self.teach else (batch.x_0, batch.noise)
        output = network(x_t.to(self.dtype), batch.t.float(), batch.labels, batch.dropout_keys)
        return self.objective(output, x_0, x_t, batch.t, noise)  # by default eq. 14

    def halve_micro_batch(self) -> None:
        """Make room after memory has run out. Raises RunStopped if there is one image left."""
        if self.micro_batch == 1:
            raise RunStopped("out of memory with a single image: use a smaller network or image")
        self.micro_batch = -(-self.micro_batch // 2)
        print_on_main(f"out of memory: the micro-batch is now {self.micro_batch}; the batch is unchanged")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build_learner(network: UNet, diffusion: DiffusionConfig, training: TrainingConfig, plan: ComputePlan) -> Learner:
    """Return a learner for a network that is on its device already, compiled and wrapped for several processes."""
    muon = None
    if training.optimizer == "muon":
        weight_decay = MUON_DECAY / (training.learning_rate * training.steps)
        products = torch.bfloat16 if plan.dtype == torch.bfloat16 else torch.float32
        muon = Muon(muon_parameters(network), weight_decay, products)
    optimizer = Optimizer(network, training.grad_clip, plan.scales_loss, muon)
    ema = EMA(network, training.ema_decay, training.ema_warmup)
    if plan.compile:
        network.compile(options=COMPILER)
    parallel: nn.Module = network
    if world_size() > 1:
        devices = [plan.device] if plan.device.type == "cuda" else None
        parallel = DistributedDataParallel(network, devices, gradient_as_bucket_view=True, broadcast_buffers=False)
    return Learner(
        network,
        parallel,
        diffusion.build(),
        diffusion.build_loss(),
        optimizer,
        ema,
        plan.dtype,
        training.batch_size,
        plan.micro_batch,
    )


def agree_on_micro_batch(learner: Learner, batch: Batch) -> None:
    """Halve the micro-batch until it fits in this process; then take the smallest of all processes."""
    while True:
        try:
            with gradients_exchanged(learner.parallel, False):
                learner.losses(learner.parallel, next(batch.split(learner.micro_batch))).sum().backward()
            break
        except torch.OutOfMemoryError:
            learner.optimizer.zero_grad()
            learner.halve_micro_batch()
    learner.optimizer.zero_grad()
    learner.micro_batch = min(gather([learner.micro_batch]))


@dataclass(frozen=True)
class StepResult:
    """The numbers of a step, still on the device, so that the host need not wait for them.

    losses: float32 (n,), of this process's images. numbers: float32 (3,): the loss of the global batch, the norm of its
    gradient, and how many processes were asked to stop.
    """

    losses: Tensor
    numbers: Tensor


def train_step(learner: Learner, batch: Batch, learning_rate: float, *, stop: bool = False) -> StepResult:
    """Take one step of algorithm 1 on this process's part of the global batch.

    The gradient is accumulated over micro-batches and added up over processes, then clipped. A step whose loss or
    gradient is not finite leaves the weights as they were.

    Args:
        stop: whether this process was asked to stop. It travels with the loss, so that all agree in the same step.
    """
    optimizer, losses = learner.optimizer, []
    # DDP takes the mean over processes, so the sum over images is divided by this process's fraction of the batch.
    images = learner.batch_size / world_size()
    parts = list(batch.split(learner.micro_batch))
    for part in parts:
        with gradients_exchanged(learner.parallel, part is parts[-1]):
            loss = learner.losses(learner.parallel, part)
            ((loss * part.weight).sum() / images * optimizer.scale).backward()
        losses.append(loss.detach())
    of_each = torch.cat(losses)
    mean = (of_each * batch.weight).sum() / learner.batch_size
    asked = torch.full((), float(stop), device=mean.device)  # filled there: no copy to wait for
    mean, asked = all_sum(torch.stack([mean, asked]))
    norm = optimizer.step(learning_rate, mean)
    learner.ema.update(learner.network)
    optimizer.zero_grad()
    return StepResult(of_each, torch.stack([mean, norm, asked]))


def gradients_exchanged(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Inside, a backward pass adds up gradients over processes only if `wanted`: once per step, not per micro-batch."""
    if wanted or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
