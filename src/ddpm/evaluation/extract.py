"""Features of a whole image set: in chunks, over several processes, again from where it was killed."""

from contextlib import suppress
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ddpm.errors import UserError
from ddpm.evaluation.cache import Chunks, sign_of_life
from ddpm.evaluation.features import FeatureNetwork
from ddpm.evaluation.frechet import Moments, load_moments, moments_of
from ddpm.evaluation.images import ImageSet
from ddpm.files import sync
from ddpm.hardware import process_rank
from ddpm.viewing.files import written_beside

BATCH = 32


class Columns:
    """Some columns of `Chunks`, still on the disk."""

    def __init__(self, chunks: Chunks, columns: slice):
        self.chunks, self.columns = chunks, columns

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, rows) -> np.ndarray:
        return self.chunks.take(rows, self.columns)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True)
class Features:
    """A set's features (n, D), logits (n, K) and channel means (n, C) in levels of 0..255, all on the disk."""

    chunks: Chunks
    features: Columns
    logits: Columns
    channel_means: Columns
    dimensions: int

    def moments(self) -> Moments:
        """Computed once; kept beside the features as mu, sigma and n."""
        path = self.chunks.folder / f"moments-{len(self.chunks)}.npz"
        with suppress(FileNotFoundError, ValueError, EOFError, BadZipFile, UserError):  # not there, or damaged
            return load_moments(path)
        moments = moments_of(block[:, : self.dimensions] for block in self.chunks.blocks())
        with written_beside(path) as beside:
            moments.save(beside)
            sync(beside)
        return load_moments(path)


def extract(images: ImageSet, network: FeatureNetwork, progress: bool = True) -> Features:
    """Features of all `images`; those that are in the cache are not computed again.

    Every process computes its share; the first returns when all shares are there.
    """
    settings = {"images": images.fingerprint, "network": network.fingerprint, "transform": network.transform}
    chunks = Chunks("features", settings, len(images), images.chunk)
    missing = chunks.missing(chunks.mine())
    rows = sum(len(chunks.bounds(start)) for start in missing)
    shown = progress and process_rank()[0] == 0
    with tqdm(total=rows, desc=images.title, unit="image", disable=not (shown and missing)) as bar:
        for start in missing:
            parts = []
            bounds = chunks.bounds(start)
            for first in range(bounds.start, bounds.stop, BATCH):
                batch = images[first : min(first + BATCH, bounds.stop)]
                parts.append(np.hstack([*network(batch), batch.double().mean((2, 3)).numpy()]).astype(np.float32))
                bar.update(len(batch))
                sign_of_life()
            chunks.write(start, np.concatenate(parts))
    if process_rank()[0] == 0:
        chunks.wait()
    d, k = network.dimensions, network.dimensions + network.classes
    features, logits, means = (Columns(chunks, part) for part in (slice(0, d), slice(d, k), slice(k, None)))
    return Features(chunks, features, logits, means, d)
