"""Which images a training step sees: a function of (seed, step, position in the global batch) alone."""

import torch
from torch import Tensor

from ddpm.data.dataset import ImageDataset, MemoryDataset
from ddpm.pixels import to_float
from ddpm.randomness import derive_seed

SHARE_OF_DEVICE = 0.25  # of the accelerator's free memory that a data set may take


class Loader:
    """The batches of a run.

    Args:
        dataset: what to draw from.
        global_batch: images a step, over all processes.
        seed: of the run.
        random_flip: mirror each drawn image left to right with probability 1/2.
        device: where the batches are wanted; a set that fits beside the model is kept there.

    Image `position` of step `step` is number step·global_batch + position of the data set's endless shuffled order, so
    every image comes once an epoch whatever the number of processes, and a run goes on anywhere without replaying.
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
        if isinstance(dataset, MemoryDataset) and _fits(dataset, self.device):
            dataset.to(self.device)

    def batch(self, step: int, positions: range) -> tuple[Tensor, Tensor | None]:
        """x_0 float32 (n, C, H, W) in [-1, 1] and int64 labels (n,) or None, on the device."""
        start = step * self.global_batch
        images, labels = self.dataset.draw(
            self.seed, range(start + positions.start, start + positions.stop, positions.step)
        )
        images = images.to(self.device, non_blocking=True)
        if self.random_flip:
            mirrored = self._flips(step)[positions.start : positions.stop : positions.step].to(self.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return to_float(images), None if labels is None else labels.to(self.device, non_blocking=True)

    def _flips(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "flip", step))
        return torch.rand(self.global_batch, generator=generator) < 0.5


def _fits(dataset: MemoryDataset, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.images.nbytes < SHARE_OF_DEVICE * free
