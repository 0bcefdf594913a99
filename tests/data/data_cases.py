"""Helpers for the tests of data sources."""

import tracemalloc
from contextlib import contextmanager

import numpy as np

from ddpm.data import open_dataset


def as_array(dataset) -> np.ndarray:
    """Return all images, (N, H, W, C)."""
    return dataset.batch(range(len(dataset)))[0].permute(0, 2, 3, 1).numpy()


def opened(source, **options):
    """Open a data set of 16x16 images."""
    return open_dataset(str(source), **{"image_size": 16, **options})


@contextmanager
def little_memory(limit: int = 8_000_000):
    """Fail if the block allocates more than `limit` bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
