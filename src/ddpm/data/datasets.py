"""Data sets ready for use: uint8 images of one shape with labels, in memory or decoded when needed."""

import functools
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.common.errors import UserError
from ddpm.common.randomness import derive_seed
from ddpm.data.config import DataConfig
from ddpm.data.images import MOST_MEMORY_BYTES, BrokenFile, printable, resize_to, to_tensor
from ddpm.data.stored import ArraySource, ImageSource

T = TypeVar("T")
CHUNK = 16  # items per task


def workers() -> int:
    """Return how many threads to use: the cores this process may run on, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 32)


def in_parallel(function: Callable[[int], T], count: int) -> Iterator[T]:
    """Yield function(0), function(1), … in order. Threads compute only a few chunks ahead, so memory stays flat."""

    def chunk(start: int) -> list[T]:
        return [function(index) for index in range(start, min(start + CHUNK, count))]

    pool = ThreadPoolExecutor(workers())
    try:
        ahead: deque[Future[list[T]]] = deque()
        for start in range(0, count, CHUNK):
            ahead.append(pool.submit(chunk, start))
            if len(ahead) > 2 * workers():
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


NAMED = 10  # skipped files named in a summary


@dataclass
class Report:
    """What was found while reading a source.

    Attributes:
        sizes: (height, width) as stored -> number of images.
        skipped: (name, reason) of every file that is not used.
        lost_classes: classes that are left out because none of their images can be read.
    """

    source: str
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    lost_classes: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set, repr=False)

    def skip(self, name: str, reason: str) -> None:
        """Add a skipped file, once."""
        if name not in self._names:
            self._names.add(name)
            self.skipped.append((name, reason))

    def summary(self) -> str:
        """Name the skipped files in a few lines; return an empty string if there are none."""
        if not self.skipped:
            return ""
        lines = [f"skipped {len(self.skipped):,} file{'s' * (len(self.skipped) > 1)} of {self.source}:"]
        lines += [printable(f"  {name}: {reason}") for name, reason in self.skipped[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(f"  and {len(self.skipped) - NAMED:,} more")
        return "\n".join(lines)


class ImageDataset:
    """A data set of images of one shape, by number.

    Attributes:
        image_shape: (C, H, W).
        class_names: one per class, or None without labels.
        fingerprint: a hash of the content.
        report: sizes and skipped files.
    """

    image_shape: tuple[int, int, int]
    class_names: list[str] | None
    fingerprint: str
    report: Report

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images uint8 (n, C, H, W) in 0..255, and labels int64 (n,) or None."""
        raise NotImplementedError

    def draw(self, seed: int, numbers: range) -> tuple[Tensor, Tensor | None]:
        """Return the images at these positions of the endless shuffled order of `seed`, in the form of `batch`.

        The permutation of an epoch depends on (seed, epoch) alone, so any position is found without a replay.
        """
        return self.batch(epoch_order(len(self), seed, numbers))

    def state_dict(self, number: int) -> dict[str, Any]:
        """Return the state to resume from position `number` of the order; empty if the seed is enough."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken."""

    def close(self) -> None:
        """Stop reading ahead: no other image will be needed."""


class MemoryDataset(ImageDataset):
    """A data set that is decoded once and kept in memory.

    Attributes:
        images: uint8 (N, C, H, W) in 0..255.
        labels: int64 (N,) or None. `batch` returns tensors on the device of these two.
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
    """A data set too large for memory: an image is decoded each time it is needed.

    A broken file is replaced by the next image that can be read, the same in every process, and reported once.
    """

    def __init__(
        self,
        stored: ImageSource,
        config: DataConfig,
        labels: Tensor | None,
        class_names: list[str] | None,
        report: Report,
    ):
        self.stored, self.config, self.image_shape = stored, config, config.image_shape
        self.labels, self.class_names, self.report = labels, class_names, report
        if isinstance(stored, ArraySource):
            report.sizes = Counter({stored.images.shape[1:3]: len(stored)})
        digest = hashlib.blake2b(settings_of(config).encode(), digest_size=16)
        for index in range(len(stored)):
            digest.update(f"{stored.name(index)}\n".encode() + stored.change_token(index))
        self.fingerprint = digest.hexdigest()
        self._broken: set[int] = set()
        self._pool = ThreadPoolExecutor(workers())

    def __len__(self) -> int:
        return len(self.stored)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        found, images = zip(*self._pool.map(self._next_readable, torch.as_tensor(indices).tolist()), strict=True)
        return torch.stack(images), None if self.labels is None else self.labels[list(found)]

    def _next_readable(self, index: int) -> tuple[int, Tensor]:
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if candidate in self._broken:
                continue
            try:
                return candidate, load_image(self.stored, self.config, candidate)[0]
            except BrokenFile as error:
                self._broken.add(candidate)
                self.report.skip(self.stored.name(candidate), str(error))
        raise UserError(f"{self.report.source} holds no image that can be used")


def matched_by_number(own: list[str], names: list[str]) -> bool:
    """Whether two lists of classes match by number: as long as each other, and one of them is just 0, 1, 2, …"""
    numbered = [str(number) for number in range(len(names))]
    return set(own) != set(names) and len(own) == len(names) and numbered in (own, names)


def epoch_order(size: int, seed: int, numbers: range) -> Tensor:
    """Return the image, int64 (n,) in 0..size-1, at each position g: the permutation of epoch g // size at g % size."""
    positions = torch.arange(numbers.start, numbers.stop, numbers.step)
    indices = torch.empty_like(positions)
    for epoch in torch.unique(positions // size).tolist():
        here = positions // size == epoch
        indices[here] = _permutation(size, seed, epoch)[positions[here] % size]
    return indices


@functools.lru_cache(maxsize=2)  # a batch may contain the end of one epoch and the start of the next
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


def _content_hash(images: Tensor, labels: Tensor | None) -> str:
    digest = hashlib.blake2b(repr((tuple(images.shape), labels is not None)).encode(), digest_size=16)
    digest.update(images.contiguous().numpy().data)
    if labels is not None:
        digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()


def make_ready(stored: ImageSource, config: DataConfig) -> MemoryDataset | LazyDataset:
    """Bring a source to the size and channels of `config`.

    The images are decoded into memory, unless that takes more than MOST_MEMORY_BYTES: then each is decoded when it is
    needed. A class whose images are all broken is left out.

    Raises UserError if no image can be read, or labels are wanted and there are none.
    """
    if isinstance(stored, ArraySource) and not 1 <= stored.images.shape[3] <= 4:
        raise UserError(f"{config.source} holds images of {stored.images.shape[3]} channels; 1 to 4 can be read")
    report = Report(config.source, skipped=list(stored.skipped))
    if len(stored) == 0:
        raise UserError(_nothing_left(report))
    labels, class_names = None, None
    if config.labels:
        numbers, class_names = stored.classes(config.source)
        labels = torch.from_numpy(numbers)
    if len(stored) * np.prod(config.image_shape) > MOST_MEMORY_BYTES:
        return LazyDataset(stored, config, labels, class_names, report)
    if isinstance(stored, ArraySource) and stored.images.shape[1:] == (*config.size, config.channels):
        report.sizes[config.size] = len(stored)
        images = torch.from_numpy(np.array(stored.images.transpose(0, 3, 1, 2), order="C"))
        return MemoryDataset(images, labels, class_names, report)
    images, kept = _decode_all(stored, config, report)
    if labels is not None and class_names is not None and len(kept) < len(stored):
        labels, class_names, report.lost_classes = _without_lost_classes(labels, labels[kept], class_names)
    return MemoryDataset(images, labels, class_names, report)


def load_image(stored: ImageSource, config: DataConfig, index: int) -> tuple[Tensor, tuple[int, int]]:
    """Return an image uint8 (C, H, W) in the form of `config`, and its stored (height, width). Raises BrokenFile."""
    image = stored.image(index, config.channels, config.background)
    return to_tensor(resize_to(image, config.size, config.fit, config.background)), (image.height, image.width)


def _decode_all(stored: ImageSource, config: DataConfig, report: Report) -> tuple[Tensor, list[int]]:
    """Return every image that can be read (n, C, H, W) and their indices; the others go into the report."""

    def load(index: int) -> tuple[Tensor, tuple[int, int]] | str:
        try:
            return load_image(stored, config, index)
        except BrokenFile as error:
            return str(error)

    images = torch.empty(len(stored), *config.image_shape, dtype=torch.uint8)
    kept: list[int] = []
    loaded = in_parallel(load, len(stored))
    for index, result in enumerate(tqdm(loaded, "reading", len(stored), leave=False, delay=2, disable=None)):
        if isinstance(result, str):
            report.skipped.append((stored.name(index), result))
        else:
            images[len(kept)], size = result
            report.sizes[size] += 1
            kept.append(index)
    if not kept:
        raise UserError(_nothing_left(report))
    return images[: len(kept)], kept


def _without_lost_classes(
    listed: Tensor, labels: Tensor, class_names: list[str]
) -> tuple[Tensor, list[str], list[str]]:
    """Leave out the classes that lost all of their images. Return the new labels and names, and the lost names."""
    lost = sorted(set(listed.tolist()) - set(labels.tolist()))
    kept = [number for number in range(len(class_names)) if number not in lost]
    renumbered = torch.full((len(class_names),), -1, dtype=torch.int64)
    renumbered[kept] = torch.arange(len(kept))
    return renumbered[labels], [class_names[number] for number in kept], [class_names[number] for number in lost]


def settings_of(config: DataConfig) -> str:
    """Return what a fingerprint says of the settings. Moving a set, or mirroring its images, does not change it."""
    return config.model_dump_json(exclude={"random_flip", "source"})


def _nothing_left(report: Report) -> str:
    if not report.skipped:
        return f"{report.source} holds no images"
    name, reason = report.skipped[0]
    return f"{report.source} holds no image that can be used: {len(report.skipped):,} were skipped, {name}: {reason}"
