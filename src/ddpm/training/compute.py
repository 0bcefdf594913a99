"""How a run computes: number format, memory format, compilation, micro-batch and reproducible kernels."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ddpm.common.distributed import local_world_size, world_size
from ddpm.common.errors import UserError
from ddpm.common.hardware import bf16_speedup, compute_dtype, precision_name
from ddpm.common.names import Precision
from ddpm.data.datasets import ImageDataset
from ddpm.networks.unet import Level, UNet
from ddpm.training.config import TrainingConfig


@contextlib.contextmanager
def reproducible_kernels(device: torch.device) -> Iterator[None]:
    """Inside, CUDA adds in a fixed order, as CPUs always do. The earlier settings are restored at the end."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the process first multiplies matrices
    before = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic  # its one attribute is a property, which type checkers do not see
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # nothing here reads what it has not written
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # flash attention has a backward pass in a fixed order
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


MEMORY_FRACTION = 0.5  # of the machine's memory that a micro-batch chosen here may fill
TRANSIENT = 1.4  # measured: peak memory of a step over the activations held for the backward pass
COMPILE_STEPS = 5000  # from which compiling, a minute or two, saves more time than it costs
GIB = 1 << 30


@dataclass(frozen=True)
class ComputePlan:
    """How a run computes.

    micro_batch: images of this process that are in memory at once; smaller ones are accumulated to the batch.
    """

    device: torch.device
    dtype: torch.dtype
    compile: bool
    micro_batch: int
    processes: int

    def __str__(self) -> str:
        kind = f"cpu, {torch.get_num_threads()} threads" if self.device.type == "cpu" else device_name(self.device)
        compiled = "compiled" if self.compile else "not compiled"
        ranks = f", {self.processes} processes" if self.processes > 1 else ""
        order = "" if self.device.type == "cpu" and self.dtype == torch.float32 else "channels-last, "
        return f"{kind}{ranks}, {precision_name(self.dtype)}, {order}{compiled}, micro-batch {self.micro_batch}"

    def why(self, precision: Precision) -> str:
        """Say what was measured to choose the number format, if it was: in parentheses, to follow `str(plan)`."""
        if precision != "auto" or self.device.type != "cpu":
            return ""
        return f" (bf16 is {bf16_speedup():.1f} times as fast as fp32 here)"

    @property
    def scales_loss(self) -> bool:
        """fp16 alone underflows without a loss scale."""
        return self.dtype == torch.float16


@dataclass(frozen=True)
class Memory:
    """Bytes that a run holds: `fixed` for any batch, and `per_image` of a micro-batch."""

    fixed: int
    per_image: int

    def total(self, micro_batch: int) -> int:
        """Return the bytes with so many images in memory at once."""
        return self.fixed + micro_batch * self.per_image


def plan_compute(
    config: TrainingConfig, network: UNet, dataset: ImageDataset, device: torch.device
) -> tuple[ComputePlan, Memory]:
    """Return how a run computes, and what it will hold in memory.

    `auto` takes the largest micro-batch that keeps to half of the memory. It looks at the memory that the machine has,
    not at what is free, so that the same machine always makes the same choice.

    Raises UserError for a run that cannot fit.
    """
    dtype, processes = compute_dtype(config.precision, device), world_size()
    if config.batch_size < processes:
        raise UserError(
            f"training.batch_size {config.batch_size} is less than one image for each of {processes} processes"
        )
    largest = -(-config.batch_size // processes)
    try:
        per_image = int(TRANSIENT * activation_bytes(network, dtype))
    except torch.OutOfMemoryError:
        raise UserError(f"one image alone does not fit in the memory of {device_name(device)}") from None
    # weights, gradients, Adam's two moments, the average and its copy for previews, all float32
    parameters = sum(p.numel() for p in network.parameters())
    memory = Memory(parameters * 4 * 6 + dataset_bytes(dataset, device), per_image)
    has = total_memory(device) // (local_world_size() if device.type == "cpu" else 1)
    if config.micro_batch == "auto":
        micro = max(1, min(largest, int(MEMORY_FRACTION * has - memory.fixed) // memory.per_image))
        micro = -(-largest // -(-largest // micro))  # as equal parts as that many allow
    else:
        micro = min(config.micro_batch, largest)
    if memory.total(micro) > has:
        raise UserError(
            f"this run would need {memory.total(micro) / GIB:.1f} GiB of memory and there are {has / GIB:.1f}: use a "
            f"smaller {'network or image' if micro == 1 else 'training.micro_batch'}, or network.gradient_checkpointing"
        )
    worthwhile = device.type == "cuda" and config.steps >= COMPILE_STEPS
    compiled = worthwhile if config.compile == "auto" else config.compile
    return ComputePlan(device, dtype, compiled, micro, processes), memory


def activation_bytes(network: UNet, dtype: torch.dtype) -> int:
    """Return the bytes that autograd holds per image at most: what it keeps of two images, less what it keeps of one.

    Weights that are cast or folded are kept once for any batch, and cancel. A checkpointed block keeps its inputs, and
    all the rest while it is recomputed in the backward pass.
    """
    held, blocks = forward_bytes(network, dtype, 1)
    try:
        held_by_two, blocks_by_two = forward_bytes(network, dtype, 2)
    except torch.OutOfMemoryError:
        return held + max(blocks, default=0)
    recomputed = (two - one for one, two in zip(blocks, blocks_by_two, strict=True))
    return held_by_two - held + max(recomputed, default=0)


def forward_bytes(network: UNet, dtype: torch.dtype, images: int) -> tuple[int, list[int]]:
    """Return the bytes that autograd keeps of a forward pass, and those of each checkpointed block once recomputed."""
    device = next(network.parameters()).device
    x = torch.zeros(images, network.in_channels, *network.image_size, device=device, dtype=dtype)
    keys = torch.zeros(images, dtype=torch.int64, device=device)
    labels = None if network.num_classes is None else keys
    calls: list[tuple[nn.Module, tuple[Tensor | None, ...]]] = []
    levels = [level for level in network.modules() if isinstance(level, Level) and level.checkpointing]
    blocks = [block for level in levels for members in level.children() for block in members.children()]
    hooks = [block.register_forward_pre_hook(lambda *call: calls.append(call)) for block in blocks]
    held = kept_bytes(network, x, torch.zeros(images, device=device), labels, keys)
    for hook in hooks:
        hook.remove()
    return held, [kept_bytes(block, *inputs) for block, inputs in calls]


def kept_bytes(module: nn.Module, *inputs: Tensor | None) -> int:
    """Return the bytes that autograd keeps of a forward pass."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address is only a name while its tensor lives

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(*inputs)
    return sum(kept.values())


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of this machine, container or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min(psutil.virtual_memory().total, container_limit())


def container_limit(path: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the bytes that a Linux container may use; the file says "max" if there is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 1 << 62


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dataset_bytes(dataset: ImageDataset, device: torch.device) -> int:
    """Return the bytes that a dataset takes in the device's memory; 0 if it is streamed, lazy or kept on the host."""
    images = getattr(dataset, "images", None)
    if not isinstance(images, Tensor) or images.is_cuda != (device.type == "cuda"):
        return 0
    return images.nbytes
