"""Figures that need no pairs of images: the Inception Score, the drift of the mean colour, the levels of the pixels."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ddpm.evaluation.cache import Rows

SPLITS, SEED = 10, 2020  # torch-fidelity's


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
