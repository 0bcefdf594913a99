"""Training batches: images, classes, timesteps, noise and dropout keys as a function of (seed, step, position) alone.

`position` counts the images of the global batch. So one process or many draw the same numbers, and any step can be
drawn again at any time. Numbers are drawn for a block of positions at once, because one call per image would be slow.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ddpm.common.pixels import to_float
from ddpm.common.randomness import derive_seed
from ddpm.data.datasets import ImageDataset, MemoryDataset
from ddpm.diffusion.timestep_samplers import LossAwareSampler, TimestepSampler

SHARE_OF_DEVICE = 0.25  # of the accelerator's free memory that a data set may take

Drawn = tuple[Tensor, Tensor | None]
Asked = tuple[int, range]  # (step, positions)


class Loader:
    """The batches of a run.

    Args:
        dataset: what to draw from.
        global_batch: images a step, over all processes.
        seed: of the run.
        random_flip: mirror each drawn image left to right with probability 1/2.
        device: where the batches are wanted; a set that fits beside the model is kept there.

    Image `position` of step `step` is number step·global_batch + position of the data set's endless shuffled order, so
    every image comes once an epoch whatever the number of processes, and a run goes on anywhere without replaying; with
    another batch than before, `go_on` says where.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        global_batch: int,
        seed: int,
        random_flip: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.dataset, self.global_batch, self.seed = dataset, global_batch, seed
        self.random_flip, self.device = random_flip, torch.device(device)
        self._shift = 0  # of every step's place in the order
        self._ahead: _ReadAhead | None = None
        if not isinstance(dataset, MemoryDataset):
            self._ahead = _ReadAhead(self._draw)
        elif self.device.type == "cuda" and dataset.images.nbytes < SHARE_OF_DEVICE * _free(self.device):
            dataset.to(self.device)

    def batch(self, step: int, positions: range) -> Drawn:
        """x_0 float32 (n, C, H, W) in [-1, 1] and int64 labels (n,) or None, on the device."""
        images, labels = self._ahead((step, positions)) if self._ahead else self._draw((step, positions))
        images = images.to(self.device, non_blocking=True)
        if self.random_flip:
            mirrored = self._flips(step)[positions.start : positions.stop : positions.step].to(self.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return to_float(images), None if labels is None else labels.to(self.device, non_blocking=True)

    def go_on(self, step: int, images: int) -> None:
        """Let `step` begin at place `images` of the order: elsewhere than it would, where batches had another size."""
        self._shift = images - step * self.global_batch

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a streamed set needs to go on at `step` without reading from its start; empty for other sets.

        Any process's will do for all, however many go on.
        """
        return self.dataset.state_dict(self._place(step))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if self._ahead:
            self._ahead.forget()
        self.dataset.load_state_dict(state)

    def _draw(self, asked: Asked) -> Drawn:
        step, positions = asked
        start = self._place(step)
        return self.dataset.draw(self.seed, range(start + positions.start, start + positions.stop, positions.step))

    def _place(self, step: int) -> int:
        return self._shift + step * self.global_batch

    def _flips(self, step: int) -> Tensor:
        """Which images of the global batch are mirrored."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "flip", step))
        return torch.rand(self.global_batch, generator=generator) < 0.5


class _ReadAhead:
    """Draws, in one thread, what is likely to be asked for next: whatever came after the same positions last time.

    It changes when images are decoded, never which.
    """

    def __init__(self, draw):
        self.draw = draw
        self._thread = ThreadPoolExecutor(1)
        self._after: dict[range, tuple[int, range]] = {}  # positions -> (steps later, the positions asked for then)
        self._last: Asked | None = None
        self._guess: tuple[Asked, Future[Drawn]] | None = None

    def __call__(self, asked: Asked) -> Drawn:
        if self._last is not None:
            self._after[self._last[1]] = (asked[0] - self._last[0], asked[1])
        guess, self._guess, self._last = self._guess, None, asked
        drawn = guess[1] if guess is not None and guess[0] == asked else self._thread.submit(self.draw, asked)
        result = drawn.result()
        steps_later, positions = self._after.get(asked[1], (1, asked[1]))
        coming = (asked[0] + steps_later, positions)
        self._guess = (coming, self._thread.submit(self.draw, coming))
        return result

    def forget(self) -> None:
        """Wait for what is being drawn, and drop it."""
        if self._guess is not None:
            self._guess[1].exception()
        self._guess = self._last = None


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


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
        draw: TimestepSampler,
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
        ahead = 0 if device.type == "cpu" or isinstance(self.draw, LossAwareSampler) else PREFETCHED
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
