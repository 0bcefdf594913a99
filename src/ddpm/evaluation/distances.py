"""Distances between two sets of features, and scores of one set.

Fréchet distance (Heusel et al. 2017, eq. 6); kernel distance (Bińkowski et al. 2018), unbiased at any number of
images; precision, recall, density and coverage (Kynkäänniemi et al. 2019, Naeem et al. 2020); Inception Score; drift of
the mean colour; histogram of pixel levels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ddpm.common.errors import UserError
from ddpm.evaluation.cache import Rows


@dataclass(frozen=True)
class Moments:
    """Mean mu (D,) and covariance sigma (D, D; divided by n-1) of n features, float64. n is None if not known."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None

    @property
    def dimensions(self) -> int:
        return len(self.mu)

    def save(self, path: str | Path) -> None:
        """Write an .npz with mu, sigma and n; n is 0 if not known."""
        np.savez(path, mu=self.mu, sigma=self.sigma, n=np.array(self.n or 0))


def moments_of(blocks: Iterable[np.ndarray]) -> Moments:
    """Return mean and covariance of features that come in blocks (n_i, D); only one block is in memory at a time.

    Blocks are merged by their mean and scatter (Chan et al. 1979), which avoids cancellation. Raises UserError for
    fewer than two images.
    """
    n, mu, scatter = 0, np.zeros(()), np.zeros(())
    for features in blocks:
        block = np.asarray(features, dtype=np.float64)
        mean = block.mean(axis=0)
        centred, delta, total = block - mean, mean - mu, n + len(block)
        scatter = scatter + centred.T @ centred + np.outer(delta, delta) * (n * len(block) / total)
        mu, n = mu + delta * (len(block) / total), total
    if n < 2:
        raise UserError(f"a mean and a covariance need at least two images, not {n}")
    return Moments(mu, scatter / (n - 1), n)


def load_moments(path: str | Path) -> Moments:
    """Read an .npz with mu (D,), sigma (D, D) and possibly n.

    Raises UserError if an array is missing, has the wrong shape, or holds numbers that are not finite.
    """
    with np.load(path, allow_pickle=False) as file:
        if missing := {"mu", "sigma"} - set(file.files):
            raise UserError(f"{path} has no {' and no '.join(sorted(missing))}: statistics are mu, sigma and n")
        mu, sigma = np.float64(file["mu"]), np.float64(file["sigma"])
        n = (int(file["n"]) or None) if "n" in file.files else None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{path}: mu has the shape {mu.shape} and sigma {sigma.shape}; they must have (D,) and (D, D)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds numbers that are not finite")
    return Moments(mu, sigma, n)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2(Σ_a Σ_b)^½) (Heusel et al. 2017, eq. 6).

    Σ_a Σ_b has the same eigenvalues as the symmetric Σ_a^½ Σ_b Σ_a^½. So no matrix square root of a non-symmetric
    product is needed, for which `sqrtm` returns complex numbers if n is small. Raises UserError if the two sides have
    different dimensions.
    """
    if a.dimensions != b.dimensions:
        raise UserError(
            f"features of {a.dimensions} and of {b.dimensions} dimensions cannot be compared: "
            "both sides need the same feature network"
        )
    values, vectors = np.linalg.eigh(a.sigma)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ b.sigma @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = a.mu - b.mu
    return float(difference @ difference + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross)


SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # as in torch-fidelity, so the subsets are the same


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets, and their standard deviation. The mean may be slightly negative if the sets are alike.

    std is None if the only subset is both whole sets: it would be 0 and say nothing about the error.
    """

    mean: float
    std: float | None
    subsets: int
    subset_size: int


def kernel_distance(
    a: Rows, b: Rows, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = SEED
) -> KernelDistance:
    """Return the squared maximum mean discrepancy of features (n_a, D) and (n_b, D) (Bińkowski et al. 2018).

    The kernel is k(x, y) = (x·y/D + 1)³. If a side has fewer than `subset_size` images, subsets have that size.
    Features may be on disk: only the subsets are read.
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
    """Return the unbiased estimate from m features per side: pairs of an image with itself are left out."""
    m = len(x)
    within = sum((kernel.sum() - np.trace(kernel)) / (m * (m - 1)) for kernel in (_kernel(x, x), _kernel(y, y)))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = x @ y.T / x.shape[1] + 1
    return k * k * k  # eight times as fast as ** 3


PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020, section 4
BLOCK = 1000


@dataclass(frozen=True)
class Manifold:
    """Four scores of overlap; a ball reaches from an image to its k-th neighbour of the same side.

    precision: fraction of samples inside a real ball; recall: fraction of real images inside a ball of samples;
    density: real balls that hold a sample, on average, over k (may exceed 1); coverage: fraction of real balls that
    hold a sample.
    """

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
    """Compute all four from features (n_real, D) and (n_generated, D), in float64, one block of distances at a time.

    `tick` is called once per block, `blocks_needed` times in total.
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
    """Return how often `manifold_metrics` calls `tick`."""
    return -(-n_real // BLOCK) + 2 * -(-n_generated // BLOCK)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return |x_i - y_j|² (n, m), to about 1e-13 of |x|² in float64."""
    distances = x @ y.T
    distances *= -2
    distances += (x * x).sum(axis=1)[:, None]
    distances += (y * y).sum(axis=1)
    return distances.clip(min=0, out=distances)


def _radii(features: np.ndarray, neighbours: tuple[int, ...], tick: Callable[[], object]) -> list[np.ndarray]:
    """Return the squared distance of every feature to its k-th neighbour, not counting itself, for each k."""
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


SPLITS = 10  # as in torch-fidelity


def inception_score(logits: Rows, *, splits: int = SPLITS, seed: int = SEED) -> tuple[float, float]:
    """Return exp E KL(p(y|x) || p(y)) (Salimans et al. 2016) of logits (n, K): mean and standard deviation over splits.

    They are shuffled and split as in torch-fidelity. Logits may be on disk: one split at a time is read.
    """
    order = np.random.RandomState(seed).permutation(len(logits))
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    scores = []
    for start, stop in pairwise(bounds):
        log_p = logits[order[start:stop]].astype(np.float64)
        log_p -= log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        scores.append(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def channel_drift(generated: np.ndarray, real: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the generated mean minus the real one of each channel, and the standard errors, in levels of 0..255.

    Both sides are the channel means of images, (n, C).
    """
    generated, real = generated.astype(np.float64), real.astype(np.float64)
    variance = generated.var(axis=0, ddof=1) / len(generated) + real.var(axis=0, ddof=1) / len(real)
    return (generated.mean(axis=0) - real.mean(axis=0)).tolist(), np.sqrt(variance).tolist()


def level_fractions(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the histograms (C, 256), each summing to 1, of uint8 images that come in blocks (n, C, H, W)."""
    counts = sum(
        np.stack([np.bincount(channel.ravel(), minlength=256) for channel in block.swapaxes(0, 1)]) for block in blocks
    )
    return counts / np.sum(counts, axis=1, keepdims=True)


def misplaced_levels(generated: np.ndarray, real: np.ndarray) -> float:
    """Return the fraction of pixels that would have to change for both histograms (C, 256) to be equal.

    This is the total variation distance, averaged over the channels.
    """
    return float(np.abs(generated - real).sum(axis=1).mean() / 2)
