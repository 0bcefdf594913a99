"""Precision, recall, density and coverage: whether samples look real, and whether what is real is sampled.

A set is drawn as the union of balls around its features, each reaching to the k-th nearest neighbour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020, section 4
BLOCK = 1000


@dataclass(frozen=True)
class Manifold:
    """precision: share of samples inside the real set; recall: share of real images inside the sampled set;
    density: how many real balls hold a sample, over k (may exceed 1); coverage: share of real balls that hold one."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    k_precision: int = PRECISION_NEIGHBOURS,
    k_density: int = DENSITY_NEIGHBOURS,
    tick: Callable[[], object] = lambda: None,
) -> Manifold:
    """All four from features (n_real, D) and (n_generated, D), in blocks of distances, in float64.

    `tick` is called once a block, `blocks_needed` times in all.
    """
    real, generated = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    real_radius, real_radius_density = _radii(real, (k_precision, k_density), tick)
    (generated_radius,) = _radii(generated, (k_precision,), tick)
    recalled = np.zeros(len(real), dtype=bool)
    nearest = np.full(len(real), np.inf)
    precise, held = [], 0
    for start in range(0, len(generated), BLOCK):
        stop = start + BLOCK
        distances = squared_distances(generated[start:stop], real)
        precise.append((distances <= real_radius).any(axis=1))
        recalled |= (distances <= generated_radius[start:stop, None]).any(axis=0)
        held += int((distances < real_radius_density).sum())
        np.minimum(nearest, distances.min(axis=0), out=nearest)
        tick()
    return Manifold(
        precision=float(np.concatenate(precise).mean()),
        recall=float(recalled.mean()),
        density=held / (k_density * len(generated)),
        coverage=float((nearest < real_radius_density).mean()),
    )


def blocks_needed(n_real: int, n_generated: int) -> int:
    """How often `manifold_metrics` will tick."""
    return -(-n_real // BLOCK) + 2 * -(-n_generated // BLOCK)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|² (n, m); the products cancel to about 1e-13 of |x|² in float64."""
    distances = x @ y.T
    distances *= -2
    distances += (x * x).sum(axis=1)[:, None]
    distances += (y * y).sum(axis=1)
    return distances.clip(min=0, out=distances)


def _radii(features: np.ndarray, neighbours: tuple[int, ...], tick: Callable[[], object]) -> list[np.ndarray]:
    """Squared distance of every feature to its k-th neighbour, itself not counted, for each k."""
    radii = [np.empty(len(features)) for _ in neighbours]
    for start in range(0, len(features), BLOCK):
        distances = squared_distances(features[start : start + BLOCK], features)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = 0
        ordered = np.partition(distances, neighbours, axis=1)
        for radius, k in zip(radii, neighbours, strict=True):
            radius[start : start + BLOCK] = ordered[:, k]
        tick()
    return radii
