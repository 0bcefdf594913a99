"""Training batches: images, classes, timesteps, noise and dropout keys as a function of (seed, step, position) alone.

`position` counts the images of the global batch. So one process or many draw the same numbers, and any step can be
drawn again at any time. Numbers are drawn for a block of positions at once, because one call per image would be slow.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ddpm.common.distributed import all_sum
from ddpm.common.pixels import to_float
from ddpm.common.randomness import derive_seed
from ddpm.data.datasets import ImageDataset, MemoryDataset
from ddpm.diffusion.timestep_samplers import TimestepSampler

DATASET_FRACTION = 0.25  # of the GPU's free memory that a dataset may take
PREFETCHED = 2  # batches that a thread draws ahead
BLOCK = 32  # positions


@dataclass(frozen=True)
class Batch:
    """n images and all that is random about them.

    x_0: float32 (n, C, H, W) in [-1, 1]. labels: int64 (n,), if classes are used. t: int64 (n,). weight: float32
    (n,), the importance weight of t. noise: float32, like x_0. dropout_keys: int64 (n,).
    """

    x_0: Tensor
    labels: Tensor | None
    t: Tensor
    weight: Tensor
    noise: Tensor
    dropout_keys: Tensor

    def __len__(self) -> int:
        return len(self.x_0)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Batch":
        """Return the batch of these tensors: the inverse of `tensors`."""
        return cls(labels=tensors.get("labels"), **{name: t for name, t in tensors.items() if name != "labels"})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, without labels if there are none."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield parts of at most `size` images, of equal size if possible, so that few shapes are compiled."""
        parts = -(-len(self) // size)
        chunks = {name: tensor.tensor_split(parts) for name, tensor in self.tensors().items()}
        for index in range(parts):
            yield Batch.of({name: chunk[index] for name, chunk in chunks.items()})

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on the device, images in channels-last order."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        for name in ("x_0", "noise"):
            moved[name] = moved[name].contiguous(memory_format=torch.channels_last)
        return Batch.of(moved)

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, from which a GPU copies while it computes."""
        return Batch.of({name: t if t.is_cuda else t.pin_memory() for name, t in self.tensors().items()})


class BatchSource:
    """The part of every global batch that belongs to one process.

    Image `position` of step `step` is number step·batch_size + position of the dataset's endless shuffled order. So
    every image comes once per epoch, whatever the number of processes, and a run resumes anywhere without replaying.

    Args:
        dataset: images in memory, decoded as they are drawn, or streamed; all are treated alike.
        timestep_sampler: gives the timesteps of (seed, step, positions).
        batch_size: images per step, over all processes.
        seed: of the run.
        positions: of this process, in 0..batch_size-1; all of them by default.
        random_flip: mirror each image left to right with probability 1/2.
        null_label: the class of images whose own class is dropped.
        class_drop: fraction of images whose class becomes `null_label`.
        device: where `steps` puts the batches. Images of a dataset on a GPU are drawn there.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        timestep_sampler: TimestepSampler,
        *,
        batch_size: int,
        seed: int,
        positions: range | None = None,
        random_flip: bool = False,
        null_label: int | None = None,
        class_drop: float = 0.0,
        device: torch.device | str = "cpu",
    ):
        self.dataset, self.timestep_sampler, self.device = dataset, timestep_sampler, torch.device(device)
        self.batch_size, self.seed, self.random_flip = batch_size, seed, random_flip
        self.positions = range(batch_size) if positions is None else positions
        self.null_label, self.class_drop = null_label, class_drop
        self._shift = 0  # of every step's place in the order, once the batch size has changed

    def at(self, step: int) -> Batch:
        """Return the batch of a step: images and labels on the dataset's device, the rest on the CPU."""
        return self._with_timesteps(self._without_timesteps(step), step)

    def images(self, step: int, positions: range) -> tuple[Tensor, Tensor | None]:
        """Return x_0, float32 (n, C, H, W) in [-1, 1], and the int64 labels (n,) or None, of any positions of a step.

        They are on the device if the dataset is, else on the CPU.
        """
        start = self._place(step)
        numbers = range(start + positions.start, start + positions.stop, positions.step)
        images, labels = self.dataset.draw(self.seed, numbers)
        if self.random_flip:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "flip", step))
            flips = torch.rand(self.batch_size, generator=generator) < 0.5
            mirrored = flips[positions.start : positions.stop : positions.step].to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return to_float(images), labels

    def steps(self, start: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start`, `start` + 1, … on the device.

        A thread draws ahead if that hides a cost: always for a GPU, and for images that are decoded as they are drawn.
        It draws no timesteps ahead if they depend on earlier losses (`timestep_sampler.adaptive`).
        """
        ahead = 0 if self.device.type == "cpu" and isinstance(self.dataset, MemoryDataset) else PREFETCHED
        if not ahead:
            for step in range(start, 1 << 62):
                yield self.at(step).to(self.device)
        pool = ThreadPoolExecutor(1, initializer=_use_device, initargs=(self.device,))
        queue = [pool.submit(self._prefetched, step) for step in range(start, start + ahead)]
        try:
            for step in range(start, 1 << 62):
                queue.append(pool.submit(self._prefetched, step + ahead))
                batch = queue.pop(0).result()
                if self.timestep_sampler.adaptive:
                    batch = self._with_timesteps(batch, step)
                yield batch.to(self.device)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # closing the dataset ends what is still being read

    @torch.no_grad()
    def update_timestep_sampler(self, step: int, losses: Tensor) -> None:
        """Give an adaptive sampler the losses of a step, (n,) of this process's images.

        It sees the losses of the whole global batch, so that it stays the same in every process.
        """
        everywhere = losses.new_zeros(self.batch_size)
        everywhere[self.positions.start : self.positions.stop] = losses
        all_sum(everywhere)
        t, _ = self.timestep_sampler.draw(self.seed, step, torch.arange(self.batch_size), self.batch_size)
        if bool(torch.isfinite(everywhere).all()):
            self.timestep_sampler.update(t, everywhere.cpu())

    def resume_at(self, step: int, images: int) -> None:
        """Let `step` begin at number `images` of the order: not step·batch_size if earlier steps had another size."""
        self._shift = images - step * self.batch_size

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return what a streamed dataset needs to resume at `step` without reading from its start; empty for others.

        The state of any process serves all, however many resume.
        """
        return self.dataset.state_dict(self._place(step))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        self.dataset.load_state_dict(state)

    def _place(self, step: int) -> int:
        return self._shift + step * self.batch_size

    def _prefetched(self, step: int) -> Batch:
        batch = self._without_timesteps(step) if self.timestep_sampler.adaptive else self.at(step)
        return batch.pinned() if self.device.type == "cuda" else batch

    def _without_timesteps(self, step: int) -> Batch:
        """Return the batch of a step with t and weight still empty."""
        x_0, labels = self.images(step, self.positions)
        if labels is not None and self.null_label is not None and self.class_drop > 0:
            dropped = self._drawn("class drop", step, torch.rand) < self.class_drop
            labels = torch.where(dropped.to(labels.device), self.null_label, labels)
        noise = self._drawn("noise", step, torch.randn, *x_0.shape[1:])
        keys = self._drawn("dropout", step, lambda *shape, generator: torch.randint(2**62, shape, generator=generator))
        return Batch(x_0, labels, torch.empty(0, dtype=torch.int64), torch.empty(0), noise, keys)

    def _with_timesteps(self, batch: Batch, step: int) -> Batch:
        t, weight = self.timestep_sampler.draw(self.seed, step, torch.tensor(self.positions), self.batch_size)
        return replace(batch, t=t, weight=weight)

    def _drawn(self, what: str, step: int, draw: Callable[..., Tensor], *shape: int) -> Tensor:
        """Return (n, *shape): the numbers of the blocks that this process's positions are in, cut to the positions."""
        first, last = self.positions.start // BLOCK, (self.positions.stop - 1) // BLOCK
        generator, blocks = torch.Generator(), []
        for block in range(first, last + 1):
            generator.manual_seed(derive_seed(self.seed, what, step, block))
            blocks.append(draw(BLOCK, *shape, generator=generator))
        start = self.positions.start - first * BLOCK
        return torch.cat(blocks)[start : start + len(self.positions)]


def place_dataset(dataset: ImageDataset, device: torch.device) -> None:
    """Move a dataset in memory to the GPU if it takes only a part of the free memory there."""
    if isinstance(dataset, MemoryDataset) and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if dataset.images.nbytes < DATASET_FRACTION * free:
            dataset.to(device)


def _use_device(device: torch.device) -> None:
    """Set the GPU of a new thread, which pins memory for the first one otherwise."""
    if device.type == "cuda":
        torch.cuda.set_device(torch.cuda.current_device() if device.index is None else device)
