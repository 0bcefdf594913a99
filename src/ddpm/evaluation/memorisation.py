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

from ddpm.evaluation.accuracy_score import spread
from ddpm.evaluation.cache import Rows
from ddpm.evaluation.images import ImageSet
from ddpm.pixels import to_float
from ddpm.viewing.pictures import save_grid

QUANTILE = 0.01  # of the test images' distances; a model that copies nothing has about this share below it
QUERIES = 10_000  # samples and test images looked up at most
PAIRS = 10

Blocks = Callable[[slice], Tensor]  # rows -> float32 (n, D)


@dataclass(frozen=True)
class Neighbours:
    """Of each query its nearest training image (n,) and the Euclidean distance to it (n,)."""

    index: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Audit:
    """How near samples are to training images, beside how near real test images are.

    share_below: share of samples nearer than all but QUANTILE of the test images;
    nearer_than_test: probability that a sample is nearer than a test image, 0.5 where they are alike.
    """

    generated: Neighbours
    test: Neighbours
    share_below: float
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
        share_below=float((generated.distance < bound).mean()),
        nearer_than_test=float(((farther + ties / 2) / len(ordered)).mean()),
    )


def nearest(queries: Tensor, base: Blocks, size: int, block: int = 2048) -> Neighbours:
    """The nearest of `size` base rows to each query (n, D), by blocks; its distance is good to about 1e-3 of |x|."""
    best = torch.full((len(queries),), torch.inf)
    index = torch.zeros(len(queries), dtype=torch.long)
    squares = queries.square().sum(1)
    for start in range(0, size, block):
        rows = base(slice(start, min(start + block, size)))
        for first in range(0, len(queries), block):
            part = slice(first, first + block)
            distances = squares[part, None] - 2 * queries[part] @ rows.T + rows.square().sum(1)
            found, where = distances.min(1)
            closer = found < best[part]
            best[part] = torch.where(closer, found, best[part])
            index[part] = torch.where(closer, where + start, index[part])
    return Neighbours(index.numpy(), best.clamp(min=0).sqrt().numpy())


def exact(neighbours: Neighbours, queries: Tensor, base: Blocks) -> Neighbours:
    """The same neighbours with distances taken from the differences: |x|² - 2xy + |y|² hides those of exact copies."""
    distance = [
        torch.linalg.vector_norm(query - base(slice(index, index + 1))[0]).item()
        for query, index in zip(queries, neighbours.index.tolist(), strict=True)
    ]
    return Neighbours(neighbours.index, np.array(distance))


def pixel_neighbours(queries: ImageSet, training: ImageSet) -> tuple[Neighbours, np.ndarray]:
    """Nearest training images by pixels in [0, 1], mirrored or not; also the rows of `queries` that were looked up."""
    rows = spread(len(queries), QUERIES).numpy()

    def base(part: slice) -> Tensor:
        return training[part].flatten(1).float() / 255

    found = []
    for mirrored in (False, True):
        images = queries[rows].flip(-1) if mirrored else queries[rows]
        pixels = images.flatten(1).float() / 255
        found.append(exact(nearest(pixels, base, len(training)), pixels, base))
    straight, turned = found
    use = turned.distance < straight.distance
    return Neighbours(
        np.where(use, turned.index, straight.index), np.where(use, turned.distance, straight.distance)
    ), rows


def feature_neighbours(queries: Rows, training: Rows) -> Neighbours:
    """Nearest training images by features (n, D); both may be on the disk."""
    rows = spread(len(queries), QUERIES).numpy()
    wanted = torch.from_numpy(queries[rows])

    def base(part: slice) -> Tensor:
        return torch.from_numpy(training[part])

    return exact(nearest(wanted, base, len(training)), wanted, base)


def save_pairs(path: Path, generated: ImageSet, training: ImageSet, *found: tuple[Neighbours, np.ndarray]) -> None:
    """A picture of the closest pairs: for each of `found` a row of samples over a row of their nearest images."""
    pictures = []
    for neighbours, rows in found:
        closest = np.argsort(neighbours.distance, kind="stable")[:PAIRS]
        pictures += [generated[rows[closest]], training[neighbours.index[closest]]]
    save_grid(to_float(torch.cat(pictures)), path, columns=min(PAIRS, len(found[0][1])), overwrite=True)
