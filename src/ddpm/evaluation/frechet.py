"""Fréchet distance between two sets of features, each seen as a Gaussian (Heusel et al. 2017, eq. 6)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm.errors import UserError


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
