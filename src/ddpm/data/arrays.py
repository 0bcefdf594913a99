"""Sets that are stored as one array of uint8: IDX (MNIST's format), CIFAR's batches and .npz."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Arrays:
    """A decoded set as its file holds it.

    images: uint8 (N, H, W, C), possibly memory-mapped; labels: int64 (N,) or None; class_names: one a class, or None.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)
