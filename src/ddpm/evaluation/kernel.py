"""Kernel distance (KID) between two sets of features: unbiased at any number of images (Bińkowski et al. 2018)."""

from dataclasses import dataclass

import numpy as np

from ddpm.evaluation.cache import Rows

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's, so that the same subsets are drawn


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets, and their standard deviation. May be slightly negative when the sets are alike.

    std is None where the only subset is the whole of both sets: it would be 0, whatever the error.
    """

    mean: float
    std: float | None
    subsets: int
    subset_size: int


def kernel_distance(
    a: Rows, b: Rows, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = SEED
) -> KernelDistance:
    """Squared maximum mean discrepancy of features (n_a, D) and (n_b, D) under k(x, y) = (x·y/D + 1)³.

    Fewer images than `subset_size` on either side shrink the subsets to that many. Features may be memory-mapped:
    only the subsets are read.
    """
    size = min(subset_size, len(a), len(b))
    whole = size == len(a) == len(b)
    subsets = 1 if whole else subsets
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = a[random.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[random.choice(len(b), size, replace=False)].astype(np.float64)
        values.append(squared_discrepancy(x, y))
    return KernelDistance(float(np.mean(values)), None if whole else float(np.std(values)), subsets, size)


def squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate from m features each: pairs of an image with itself are left out."""
    m = len(x)
    within = sum((kernel.sum() - np.trace(kernel)) / (m * (m - 1)) for kernel in (_kernel(x, x), _kernel(y, y)))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = x @ y.T / x.shape[1] + 1
    return k * k * k  # eight times as fast as ** 3
