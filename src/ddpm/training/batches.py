"""A step's batch: images, classes, timesteps, noise and dropout keys, all a function of (seed, step, position).

`position` counts the images of the global batch, so one process or many draw the same numbers, and a step can be
drawn again at any time. Numbers are drawn for a block of positions at once: a call an image would cost more than the
numbers, and the thread that draws ahead would have to wait for the interpreter after every one.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ddpm.data.loader import Loader
from ddpm.process.timesteps import LossAwareDraw, TimestepDraw
from ddpm.randomness import derive_seed

PREFETCHED = 2  # batches drawn ahead by a thread while an accelerator computes
BLOCK = 32  # positions


@dataclass(frozen=True)
class Batch:
    """n images and all that is random about them.

    x_0: float32 (n, C, H, W) in [-1, 1]. labels: int64 (n,), where classes are used. t: int64 (n,). weight: float32
    (n,), the importance weight of t. noise: float32, like x_0. dropout_keys: int64 (n,).
    """

    x_0: Tensor
    labels: Tensor | None
    t: Tensor
    weight: Tensor
    noise: Tensor
    dropout_keys: Tensor

    def __len__(self) -> int:
        return len(self.t)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Batch":
        """The inverse of `tensors`."""
        return cls(labels=tensors.get("labels"), **{name: t for name, t in tensors.items() if name != "labels"})

    def tensors(self) -> dict[str, Tensor]:
        """By name, those that there are."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def split(self, size: int) -> Iterator["Batch"]:
        """Parts of at most `size` images, as equal as can be, so that few shapes are compiled."""
        parts = -(-len(self) // size)
        chunks = {name: tensor.tensor_split(parts) for name, tensor in self.tensors().items()}
        for index in range(parts):
            yield Batch.of({name: chunk[index] for name, chunk in chunks.items()})

    def to(self, device: torch.device) -> "Batch":
        """On the device, images in channels-last order."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        for name in ("x_0", "noise"):
            moved[name] = moved[name].contiguous(memory_format=torch.channels_last)
        return Batch.of(moved)


class Batches:
    """Draws the part of every global batch that belongs to one process.

    Args:
        loader: the images and classes of (step, positions).
        draw: the timesteps of (seed, step, positions).
        seed: of the run.
        global_batch: images a step over all processes.
        class_drop: share of images whose class becomes `null_label`.
        rank, processes: this process takes positions rank·B/P to (rank+1)·B/P.
    """

    def __init__(
        self,
        loader: Loader,
        draw: TimestepDraw,
        *,
        seed: int,
        global_batch: int,
        null_label: int | None = None,
        class_drop: float = 0.0,
        rank: int = 0,
        processes: int = 1,
    ):
        self.loader, self.draw, self.seed, self.global_batch = loader, draw, seed, global_batch
        self.null_label, self.class_drop = null_label, class_drop
        self.positions = range(rank * global_batch // processes, (rank + 1) * global_batch // processes)

    def at(self, step: int) -> Batch:
        """The batch of a step: images and classes where the loader keeps them, what is drawn on the CPU."""
        x_0, labels = self.loader.batch(step, self.positions)
        t, weight = self.draw.draw(self.seed, step, torch.tensor(self.positions), self.global_batch)
        if labels is not None and self.null_label is not None and self.class_drop > 0:
            dropped = self._drawn("class drop", step, torch.rand) < self.class_drop
            labels = torch.where(dropped.to(labels.device), self.null_label, labels)
        noise = self._drawn("noise", step, torch.randn, *x_0.shape[1:])
        keys = self._drawn("dropout", step, lambda *shape, generator: torch.randint(2**62, shape, generator=generator))
        return Batch(x_0, labels, t, weight, noise, keys)

    def _drawn(self, what: str, step: int, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        """(n, *shape): what `draw` gives for the blocks that this process's positions lie in, cut to them."""
        first, last = self.positions.start // BLOCK, (self.positions.stop - 1) // BLOCK
        generator, blocks = torch.Generator(), []
        for block in range(first, last + 1):
            generator.manual_seed(derive_seed(self.seed, what, step, block))
            blocks.append(draw(BLOCK, *shape, generator=generator))
        start = self.positions.start - first * BLOCK
        return torch.cat(blocks)[start : start + len(self.positions)]

    def steps(self, start: int, device: torch.device) -> Generator[Batch, None, None]:
        """The batches of steps `start`, `start` + 1, … on the device; drawn ahead where that hides their cost."""
        ahead = 0 if device.type == "cpu" or isinstance(self.draw, LossAwareDraw) else PREFETCHED
        if not ahead:
            step = start
            while True:
                yield self.at(step).to(device)
                step += 1
        with ThreadPoolExecutor(1, initializer=use_device, initargs=(device,)) as pool:
            queue = [pool.submit(self._pinned, step, device) for step in range(start, start + ahead)]
            step = start + ahead
            try:
                while True:
                    queue.append(pool.submit(self._pinned, step, device))
                    yield queue.pop(0).result().to(device)
                    step += 1
            finally:
                for future in queue:
                    future.cancel()

    def _pinned(self, step: int, device: torch.device) -> Batch:
        """A batch in pinned memory, from which a CUDA card copies while it computes."""
        batch = self.at(step)
        if device.type != "cuda":
            return batch
        pinned = {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in batch.tensors().items()}
        return Batch.of(pinned)


def use_device(device: torch.device) -> None:
    """A thread pins memory for the card that it uses, which is the first unless it is told."""
    if device.type == "cuda":
        torch.cuda.set_device(torch.cuda.current_device() if device.index is None else device)
