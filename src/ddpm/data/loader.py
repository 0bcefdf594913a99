"""Which images a training step sees: a function of (seed, step, position in the global batch) alone."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ddpm.data.dataset import ImageDataset, MemoryDataset
from ddpm.pixels import to_float
from ddpm.randomness import derive_seed

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
