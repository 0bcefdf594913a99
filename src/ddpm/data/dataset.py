"""Data sets ready for use: uint8 images of one shape, with labels, a fingerprint and a report of what was skipped."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm.data.limits import BrokenFile, printable
from ddpm.data.parallel import workers
from ddpm.errors import UserError
from ddpm.randomness import derive_seed

NAMED = 10  # broken files named in a summary


@dataclass
class Report:
    """What reading a source came to.

    sizes: how many images had which (height, width) as stored; skipped: (name, reason) of every file left out.
    """

    source: str
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    _names: set[str] = field(default_factory=set, repr=False)

    def skip(self, name: str, reason: str) -> None:
        """Count a file once, however often it is met."""
        if name not in self._names:
            self._names.add(name)
            self.skipped.append((name, reason))

    def summary(self) -> str:
        """The skipped files in a few lines, or an empty string."""
        if not self.skipped:
            return ""
        lines = [f"skipped {len(self.skipped):,} file{'s' * (len(self.skipped) > 1)} of {self.source}:"]
        lines += [printable(f"  {name}: {reason}") for name, reason in self.skipped[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(f"  and {len(self.skipped) - NAMED:,} more")
        return "\n".join(lines)


class ImageDataset:
    """Images by number.

    Attributes: image_shape (C, H, W); class_names, one a class, or None; fingerprint, a hash of the content; report.
    """

    image_shape: tuple[int, int, int]
    class_names: list[str] | None
    fingerprint: str
    report: Report

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (n, C, H, W) and int64 labels (n,), or None where the set has none."""
        raise NotImplementedError

    def draw(self, seed: int, numbers: range) -> tuple[Tensor, Tensor | None]:
        """The images that come at these places in the endless shuffled order of `seed`, as `batch` gives them.

        Each epoch is a fresh permutation, a function of (seed, epoch) alone, so any place is found without replaying.
        """
        return self.batch(epoch_order(len(self), seed, numbers))

    def state_dict(self, number: int) -> dict[str, Any]:
        """What it takes to go on from place `number` of the order; empty for a set whose order needs no memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""

    def close(self) -> None:
        """Read nothing ahead any more: no other image will be asked for."""


class MemoryDataset(ImageDataset):
    """A set that is decoded once and kept as uint8.

    `images` (N, C, H, W) and `labels` (N,) or None may be moved to an accelerator; `batch` answers where they are.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, class_names: list[str] | None, report: Report):
        self.images, self.labels, self.class_names, self.report = images, labels, class_names, report
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)
        self.fingerprint = _content_hash(images, labels)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        rows = torch.as_tensor(indices, device=self.images.device)
        return self.images[rows], None if self.labels is None else self.labels[rows]

    def to(self, device: torch.device | str) -> "MemoryDataset":
        """Move the images in place."""
        self.images = self.images.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)
        return self


class LazyDataset(ImageDataset):
    """A set too large for memory: an image is decoded each time it is asked for.

    A file that turns out broken is replaced by the next one that is not, the same for everybody, and reported once.

    Args:
        load: index -> uint8 (C, H, W), or BrokenFile; called from several threads.
        name: index -> how the image is called in a report.
        count: how many there are.
    """

    def __init__(
        self,
        load: Callable[[int], Tensor],
        name: Callable[[int], str],
        count: int,
        labels: Tensor | None,
        class_names: list[str] | None,
        report: Report,
        image_shape: tuple[int, int, int],
        fingerprint: str,
    ):
        self.load, self.name, self.count = load, name, count
        self.labels, self.class_names, self.report = labels, class_names, report
        self.image_shape, self.fingerprint = image_shape, fingerprint
        self._broken: set[int] = set()
        self._pool = ThreadPoolExecutor(workers())

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        found, images = zip(*self._pool.map(self._next_whole, torch.as_tensor(indices).tolist()), strict=True)
        return torch.stack(images), None if self.labels is None else self.labels[list(found)]

    def _next_whole(self, index: int) -> tuple[int, Tensor]:
        for step in range(self.count):
            candidate = (index + step) % self.count
            if candidate in self._broken:
                continue
            try:
                return candidate, self.load(candidate)
            except BrokenFile as error:
                self._broken.add(candidate)
                self.report.skip(self.name(candidate), str(error))
        raise UserError(f"{self.report.source} holds no image that can be used")


def epoch_order(size: int, seed: int, numbers: range) -> Tensor:
    """Which image comes at each place of the endless order: epoch g // size, its permutation at g % size."""
    places = torch.arange(numbers.start, numbers.stop, numbers.step)
    indices = torch.empty_like(places)
    for epoch in torch.unique(places // size).tolist():
        here = places // size == epoch
        indices[here] = _permutation(size, seed, epoch)[places[here] % size]
    return indices


@functools.lru_cache(maxsize=2)  # this epoch's and the last one's: a batch may straddle both
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


def _content_hash(images: Tensor, labels: Tensor | None) -> str:
    digest = hashlib.blake2b(repr((tuple(images.shape), labels is not None)).encode(), digest_size=16)
    digest.update(images.contiguous().numpy().data)
    if labels is not None:
        digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()
