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

from ddpm.common.errors import UserError
from ddpm.common.hardware import compute_dtype
from ddpm.data.datasets import ImageDataset
from ddpm.networks.unet import Level, UNet
from ddpm.training.config import TrainingConfig


@contextlib.contextmanager
def reproducible_kernels(device: torch.device) -> Iterator[None]:
    """While inside, CUDA sums in a fixed order; CPUs always do. What was set before comes back after."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the process first multiplies matrices
    before, settings = torch.get_deterministic_debug_mode(), _settings()
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


def _settings() -> Any:
    """A module whose one attribute is a property, which type checkers do not see."""
    return torch.utils.deterministic


MEMORY_SHARE = 0.5  # of the machine's memory that a micro-batch chosen here may fill
TRANSIENT = 1.4  # measured: activations held for the backward pass, and what comes and goes beside them
COMPILE_FLOPS = 5000  # steps, in which a CUDA card wins back the minute or two that compiling takes
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
GIB = 1 << 30


@dataclass(frozen=True)
class Engine:
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
        return f"{kind}{ranks}, {NAMES[self.dtype]}, channels-last, {compiled}, micro-batch {self.micro_batch}"

    @property
    def scales_loss(self) -> bool:
        """fp16 alone underflows without a loss scale."""
        return self.dtype == torch.float16


@dataclass(frozen=True)
class Memory:
    """What a run holds, in bytes: whatever the batch (`fixed`), and for each image of a micro-batch (`an_image`)."""

    fixed: int
    an_image: int

    def total(self, micro_batch: int) -> int:
        return self.fixed + micro_batch * self.an_image


def choose_engine(
    config: TrainingConfig, network: UNet, dataset_bytes: int, device: torch.device, processes: int
) -> tuple[Engine, Memory]:
    """The engine of a run, and what it will hold in memory.

    `auto` takes the largest micro-batch that keeps to half of the memory; the choice rests on the memory that the
    machine has, not on what happens to be free, so that the same machine always makes the same one.

    Raises UserError for a run that cannot fit.
    """
    dtype = compute_dtype(config.precision, device)
    share = config.batch_size // processes
    if share < 1:
        raise UserError(
            f"training.batch_size {config.batch_size} is less than one image for each of {processes} processes"
        )
    largest = -(-config.batch_size // processes)
    try:
        memory = measure_memory(network, dtype, dataset_bytes)
    except torch.OutOfMemoryError:
        raise UserError(f"one image alone does not fit in the memory of {device_name(device)}") from None
    neighbours = local_processes() if device.type == "cpu" else 1
    has = total_memory(device) // neighbours
    if config.micro_batch == "auto":
        micro = max(1, min(largest, int(MEMORY_SHARE * has - memory.fixed) // memory.an_image))
        micro = -(-largest // -(-largest // micro))  # as equal parts as that many allow
    else:
        micro = min(config.micro_batch, largest)
    if memory.total(micro) > has:
        raise UserError(
            f"this run would need {memory.total(micro) / GIB:.1f} GiB of memory and there are {has / GIB:.1f}: take a "
            f"smaller {'network or image' if micro == 1 else 'training.micro_batch'}, or network.gradient_checkpointing"
        )
    worthwhile = device.type == "cuda" and config.steps >= COMPILE_FLOPS
    compiled = worthwhile if config.compile == "auto" else config.compile
    return Engine(device, dtype, compiled, micro, processes), memory


def measure_memory(network: UNet, dtype: torch.dtype, dataset_bytes: int) -> Memory:
    """Weights, gradients, Adam's two moments, the average and its copy for previews; and one image's activations."""
    parameters = sum(p.numel() for p in network.parameters())
    fixed = parameters * 4 * 6 + dataset_bytes
    return Memory(fixed, int(TRANSIENT * activation_bytes(network, dtype)))


def activation_bytes(network: UNet, dtype: torch.dtype) -> int:
    """What autograd holds of one image at most, counted on a forward pass.

    Of a checkpointed block that is its inputs, and while it is computed again for its backward pass all that it keeps.
    """
    device = next(network.parameters()).device
    x = torch.zeros(1, network.in_channels, *network.image_size, device=device, dtype=dtype)
    labels = None if network.num_classes is None else torch.zeros(1, dtype=torch.int64, device=device)
    calls: list[tuple[nn.Module, tuple[Tensor | None, ...]]] = []
    hooks = [
        block.register_forward_pre_hook(lambda *call: calls.append(call)) for block in checkpointed_blocks(network)
    ]
    held = kept_bytes(
        network, x, torch.zeros(1, device=device), labels, torch.zeros(1, dtype=torch.int64, device=device)
    )
    for hook in hooks:
        hook.remove()
    return held + max((kept_bytes(block, *inputs) for block, inputs in calls), default=0)


def checkpointed_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of which only the inputs are kept."""
    levels = [level for level in network.modules() if isinstance(level, Level) and level.checkpointing]
    return [block for level in levels for blocks in level.children() for block in blocks.children()]


def kept_bytes(module: nn.Module, *inputs: Tensor | None) -> int:
    """What autograd keeps of a forward pass, less the weights: those are there once, whatever the batch."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address is only a name while its tensor lives

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not is_cast_weight(tensor):
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(*inputs)
    return sum(kept.values())


def is_cast_weight(tensor: Tensor) -> bool:
    """Whether this is a parameter in another number format, or a view of one, as autograd's graph tells."""
    made_by = (tensor if tensor._base is None else tensor._base).grad_fn
    return (
        made_by is not None
        and made_by.name() == "ToCopyBackward0"
        and hasattr(made_by.next_functions[0][0], "variable")
    )


def total_memory(device: torch.device) -> int:
    """Bytes that this machine (or the container it is) or accelerator has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min(psutil.virtual_memory().total, container_limit())


def container_limit(path: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """The memory a Linux container may use; no limit reads "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 1 << 62


def local_processes() -> int:
    """Processes of this run on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dataset_bytes(dataset: ImageDataset, device: torch.device) -> int:
    """What a data set takes of the memory that a device computes in: next to nothing where it is read as it goes, or
    where the `Loader` has left it with a card's host.
    """
    images = getattr(dataset, "images", None)
    if not isinstance(images, Tensor) or images.is_cuda != (device.type == "cuda"):
        return 0
    return images.nbytes
