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
    """Mean (D,) and covariance (D, D; divided by n-1) of n features, float64. `n` is None where a file did not say."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None

    @property
    def dimensions(self) -> int:
        return len(self.mu)

    def save(self, path: str | Path) -> None:
        """Write .npz with mu, sigma and n, 0 where it is not known."""
        np.savez(path, mu=self.mu, sigma=self.sigma, n=np.array(self.n or 0))


def moments_of(blocks: Iterable[np.ndarray]) -> Moments:
    """Moments of features that come in blocks (n_i, D); only one block is in memory at a time.

    Blocks are merged by their own mean and scatter (Chan et al. 1979), which loses nothing to cancellation.
    """
    n, mu, scatter = 0, np.zeros(()), np.zeros(())
    for features in blocks:
        block = np.asarray(features, dtype=np.float64)
        mean = block.mean(axis=0)
        centred, delta, total = block - mean, mean - mu, n + len(block)
        scatter = scatter + centred.T @ centred + np.outer(delta, delta) * (n * len(block) / total)
        mu, n = mu + delta * (len(block) / total), total
    if n < 2:
        raise UserError(f"moments need at least two images, not {n}")
    return Moments(mu, scatter / (n - 1), n)


def load_moments(path: str | Path) -> Moments:
    """Read .npz with mu and sigma, and n where it was written."""
    with np.load(path, allow_pickle=False) as file:
        if missing := {"mu", "sigma"} - set(file.files):
            raise UserError(f"{path} has no {' and no '.join(sorted(missing))}: reference moments are mu, sigma and n")
        mu, sigma = np.float64(file["mu"]), np.float64(file["sigma"])
        n = (int(file["n"]) or None) if "n" in file.files else None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{path}: mu {mu.shape} and sigma {sigma.shape} do not belong together; they are (D,) and (D, D)"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds numbers that are not finite")
    return Moments(mu, sigma, n)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2(Σ_a Σ_b)^½).

    Σ_a Σ_b has the eigenvalues of the symmetric Σ_a^½ Σ_b Σ_a^½, so that no matrix square root of a product that is
    barely not symmetric is needed (`sqrtm` returns complex numbers there when n is small).
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


SPLITS = 10  # as in torch-fidelity


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits."""

    mean: float
    std: float


def inception_score(logits: Rows, *, splits: int = SPLITS, seed: int = SEED) -> InceptionScore:
    """exp E KL(p(y|x) || p(y)) (Salimans et al. 2016) of logits (n, K), shuffled and split as torch-fidelity does.

    Logits may be on the disk: a split at a time is read.
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
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


@dataclass(frozen=True)
class Drift:
    """Generated mean minus real mean of each channel, in levels of 0..255, with its standard error."""

    levels: list[float]
    standard_errors: list[float]


def channel_drift(generated: np.ndarray, real: np.ndarray) -> Drift:
    """From each image's channel means (n, C) in levels of 0..255."""
    generated, real = generated.astype(np.float64), real.astype(np.float64)
    variance = generated.var(axis=0, ddof=1) / len(generated) + real.var(axis=0, ddof=1) / len(real)
    return Drift((generated.mean(axis=0) - real.mean(axis=0)).tolist(), np.sqrt(variance).tolist())


def level_shares(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """How often each level occurs in uint8 images that come in blocks (n, C, H, W): (C, 256), rows that sum to 1."""
    counts = sum(
        np.stack([np.bincount(channel.ravel(), minlength=256) for channel in block.swapaxes(0, 1)]) for block in blocks
    )
    return counts / np.sum(counts, axis=1, keepdims=True)


def misplaced_levels(generated: np.ndarray, real: np.ndarray) -> float:
    """Share of the pixels that would have to change for each level to be as frequent as it is among `real`.

    The total variation distance of two (C, 256) of `level_shares`, its mean over the channels.
    """
    return float(np.abs(generated - real).sum(axis=1).mean() / 2)
