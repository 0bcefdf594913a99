"""Memorisation audit: are samples nearer to training images than new real images are?

For every sample and every real test image the nearest training image is found, once by pixels (also mirrored) and once
by features. A model that copies nothing has samples no closer than the test images are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.common.pixels import save_grid, to_float
from ddpm.evaluation.cache import Rows
from ddpm.evaluation.image_sets import ImageSet, subset_rows

QUANTILE = 0.01  # of the test images' distances; a model that copies nothing has about this fraction below it
QUERIES = 10_000  # at most this many samples, and as many test images
PAIRS = 10
BLOCK, VALUES = 2048, 2**25  # at most this many rows are compared at once, with this many numbers in total

Blocks = Callable[[slice], Tensor]  # rows -> float32 (n, D)


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each query (n,), and the Euclidean distance to it (n,)."""

    index: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Audit:
    """How near samples and real test images are to training images.

    fraction_below: fraction of samples that are nearer than the nearest QUANTILE of the test images;
    nearer_than_test: probability that a sample is nearer than a test image; 0.5 if they are alike.
    """

    generated: Neighbours
    test: Neighbours
    fraction_below: float
    nearer_than_test: float


def audit(generated: Neighbours, test: Neighbours) -> Audit:
    """Compare the two sets of distances."""
    bound = np.quantile(test.distance, QUANTILE)
    ordered = np.sort(test.distance)
    farther = len(ordered) - np.searchsorted(ordered, generated.distance, side="right")
    ties = np.searchsorted(ordered, generated.distance, side="right") - np.searchsorted(ordered, generated.distance)
    return Audit(
        generated,
        test,
        fraction_below=float((generated.distance < bound).mean()),
        nearer_than_test=float(((farther + ties / 2) / len(ordered)).mean()),
    )


def nearest(queries: Blocks, count: int, base: Blocks, size: int) -> Neighbours:
    """Return the nearest of `size` base rows to each of `count` queries, computed in blocks.

    The distance is accurate to about 1e-3 of |x|.
    """
    best = torch.full((count,), torch.inf)
    index = torch.zeros(count, dtype=torch.long)
    block = max(1, min(BLOCK, VALUES // queries(slice(0, 1)).shape[1]))
    for start in range(0, size, block):
        rows = base(slice(start, min(start + block, size)))
        squares = rows.square().sum(1)
        for first in range(0, count, block):
            part = slice(first, min(first + block, count))
            asked = queries(part)
            distances = asked.square().sum(1)[:, None] - 2 * asked @ rows.T + squares
            found, where = distances.min(1)
            closer = found < best[part]
            best[part] = torch.where(closer, found, best[part])
            index[part] = torch.where(closer, where + start, index[part])
    return Neighbours(index.numpy(), best.clamp(min=0).sqrt().numpy())


def exact(neighbours: Neighbours, queries: Blocks, base: Blocks) -> Neighbours:
    """Recompute the distances from the differences, since |x|² - 2xy + |y|² is too inaccurate for near copies."""
    distance = [
        torch.linalg.vector_norm(queries(slice(row, row + 1))[0] - base(slice(index, index + 1))[0]).item()
        for row, index in enumerate(neighbours.index.tolist())
    ]
    return Neighbours(neighbours.index, np.array(distance))


def pixel_neighbours(queries: ImageSet, training: ImageSet) -> tuple[Neighbours, np.ndarray]:
    """Find the nearest training images by pixels in [0, 1], mirrored or not; also return the rows of `queries` used."""
    rows = subset_rows(len(queries), QUERIES).numpy()
    images = queries[rows]  # uint8; converted to float one block at a time

    def pixels(part: Tensor) -> Tensor:
        return part.flatten(1).float() / 255

    def found(asked: Blocks) -> Neighbours:
        def base(part: slice) -> Tensor:
            return pixels(training[part])

        return exact(nearest(asked, len(rows), base, len(training)), asked, base)

    straight, turned = found(lambda part: pixels(images[part])), found(lambda part: pixels(images[part].flip(-1)))
    use = turned.distance < straight.distance
    return Neighbours(
        np.where(use, turned.index, straight.index), np.where(use, turned.distance, straight.distance)
    ), rows


def feature_neighbours(queries: Rows, training: Rows) -> Neighbours:
    """Find the nearest training images by features (n, D); both may be on disk."""
    rows = subset_rows(len(queries), QUERIES).numpy()
    wanted = torch.from_numpy(queries[rows])

    def base(part: slice) -> Tensor:
        return torch.from_numpy(training[part])

    def asked(part: slice) -> Tensor:
        return wanted[part]

    return exact(nearest(asked, len(rows), base, len(training)), asked, base)


def save_pairs(path: Path, generated: ImageSet, training: ImageSet, *found: tuple[Neighbours, np.ndarray]) -> None:
    """Save the closest pairs: for each of `found`, a row of samples above a row of their nearest training images."""
    pictures = []
    for neighbours, rows in found:
        closest = np.argsort(neighbours.distance, kind="stable")[:PAIRS]
        pictures += [generated[rows[closest]], training[neighbours.index[closest]]]
    save_grid(to_float(torch.cat(pictures)), path, columns=min(PAIRS, len(found[0][1])), overwrite=True)
