"""Data sets ready for use: from images as they are stored to uint8 tensors of one shape, with labels."""

import functools
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ddpm.common.errors import UserError
from ddpm.common.randomness import derive_seed
from ddpm.data.config import DataConfig
from ddpm.data.images import (
    MOST_CLASSES,
    MOST_MEMORY_BYTES,
    BrokenFile,
    check_size,
    decode,
    fit,
    in_mode,
    printable,
    to_tensor,
)


class ImageSource(ABC):
    """Images by number, with their classes where they have any.

    labels: int64 (N,) or None; class_names: one a class, or None; skipped: (name, reason) of what was refused while
    listing.
    """

    labels: np.ndarray | None
    class_names: list[str] | None
    skipped: list[tuple[str, str]]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """How image `index` is called in a message."""

    @abstractmethod
    def image(self, index: int, channels: int, background) -> Image.Image:
        """Image `index` at its own size, in the mode of so many channels. Raises BrokenFile."""

    @abstractmethod
    def stamp(self, index: int) -> bytes:
        """What is another when image `index` is: its content, or what its storage cheaply says of that."""

    def classes(self, source: str) -> tuple[np.ndarray, list[str]]:
        """The labels and the name of every class. Raises UserError where there are none, or impossible ones."""
        if self.labels is None:
            raise UserError(
                f"{source} has no classes: put its images in one subfolder per class, or train with --data.labels false"
            )
        names = self.class_names
        highest = len(names) if names else MOST_CLASSES
        if self.labels.min() < 0 or self.labels.max() >= highest:
            raise UserError(
                f"{source} holds labels from {self.labels.min()} to {self.labels.max()}, not 0..{highest - 1}"
            )
        if self.class_names:
            return self.labels, self.class_names
        numbers, labels = np.unique(self.labels, return_inverse=True)  # numbers may start at 1, or leave some out
        return labels.astype(np.int64), [str(number) for number in numbers]


@dataclass
class ArraySource(ImageSource):
    """One array: `images` uint8 (N, H, W, C), possibly memory-mapped."""

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int, channels: int, background) -> Image.Image:
        pixels = self.images[index]
        check_size(*pixels.shape[:2])
        return in_mode(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), channels, background)

    def stamp(self, index: int) -> bytes:
        return self.images[index].tobytes()


@dataclass
class EncodedSource(ImageSource):
    """Encoded images: `read(index)` gives the bytes of one, or raises BrokenFile, and may be called from any thread.

    `identify(index)` reads none of them and still gives another answer for other bytes under the same name.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    identify: Callable[[int], str]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int, channels: int, background) -> Image.Image:
        return decode(self.read(index), channels, background)

    def stamp(self, index: int) -> bytes:
        return self.identify(index).encode()


def file_state(path: str | Path) -> str:
    """A file's size and when it was last written, which a move keeps."""
    try:
        found = os.stat(path)
    except OSError:  # gone since it was listed: reading it says so
        return "unreadable"
    return f"{found.st_size} {found.st_mtime_ns}"


def matched_by_number(own: list[str], names: list[str]) -> bool:
    """Whether classes of two sides are the same by number: one has only numbers for names, and the other has others."""
    numbered = [str(number) for number in range(len(names))]
    return set(own) != set(names) and len(own) == len(names) and numbered in (own, names)


def classes_from_paths(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """The first folder of each path is its class; None where any image lies outside a folder."""
    tops = [name.split("/", 1) for name in names]
    if not tops or any(len(parts) == 1 for parts in tops):
        return None, None
    class_names = sorted({parts[0] for parts in tops})
    number = {name: index for index, name in enumerate(class_names)}
    return np.array([number[parts[0]] for parts in tops], np.int64), class_names


def classes_of(
    names: Sequence[str], manifest: bytes | None, below: Sequence[str] | None = None
) -> tuple[np.ndarray | None, list[str] | None]:
    """Return the labels and class names of images by a `dataset.json`, or by their folders if there is none.

    Such a file, as EDM's and StyleGAN's tools write it, holds {"labels": [[name, class], ...]}, or null if there are no
    classes. The folders beside it hold a thousand images each and mean nothing.

    Args:
        names: paths relative to the `dataset.json`.
        manifest: its content. None, or anything of another form: the first folders are the classes.
        below: the paths whose first folders are the classes; by default `names`.
    """
    try:
        entries = json.loads(manifest or b"")["labels"]
        classes = dict(entries or {})
        if entries is not None and classes.keys().isdisjoint(names):
            raise ValueError("it is about other images")
    except (ValueError, KeyError, TypeError, RecursionError):
        return classes_from_paths(names if below is None else below)
    if not classes or not all(type(number) is int and 0 <= number < MOST_CLASSES for number in classes.values()):
        return None, None
    return np.array([classes.get(name, -1) for name in names], np.int64), None


T = TypeVar("T")
CHUNK = 16  # items a task


def workers() -> int:
    """How many threads the machine gives this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 32)


def in_parallel(function: Callable[[int], T], count: int) -> Iterator[T]:
    """function(0), function(1), … in order, a few chunks ahead of whoever takes them, so that memory stays flat."""

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


def make_ready(stored: ImageSource, config: DataConfig) -> MemoryDataset | LazyDataset:
    """Decode a set into memory, or, where it is larger than MOST_MEMORY_BYTES, arrange for that image by image."""
    if isinstance(stored, ArraySource) and not 1 <= stored.images.shape[3] <= 4:
        raise UserError(f"{config.source} holds images of {stored.images.shape[3]} channels; 1 to 4 are understood")
    report = Report(config.source, skipped=list(stored.skipped))
    if len(stored) == 0:
        raise UserError(_nothing_left(report))
    labels, class_names = None, None
    if config.labels:
        numbers, class_names = stored.classes(config.source)
        labels = torch.from_numpy(numbers)
    if len(stored) * np.prod(config.image_shape) > MOST_MEMORY_BYTES:
        return _lazy(stored, config, labels, class_names, report)
    if isinstance(stored, ArraySource) and stored.images.shape[1:] == (*config.size, config.channels):
        report.sizes[config.size] = len(stored)
        images = torch.from_numpy(np.array(stored.images.transpose(0, 3, 1, 2), order="C"))
        return MemoryDataset(images, labels, class_names, report)
    images, kept = _decode_all(stored, config, report)
    if labels is not None and len(kept) < len(stored):
        labels = labels[kept]
    return MemoryDataset(images, labels, class_names, report)


def load_image(stored: ImageSource, config: DataConfig, index: int) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (C, H, W) as the configuration wants it, and the (height, width) it was stored at. Raises BrokenFile."""
    image = stored.image(index, config.channels, config.background)
    return to_tensor(fit(image, config.size, config.fit, config.background)), (image.height, image.width)


def _decode_all(stored: ImageSource, config: DataConfig, report: Report) -> tuple[Tensor, list[int]]:
    """Every usable image (n, C, H, W), and which they were; the others go into the report."""

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


def _lazy(
    stored: ImageSource, config: DataConfig, labels: Tensor | None, class_names: list[str] | None, report: Report
) -> LazyDataset:
    if isinstance(stored, ArraySource):
        report.sizes = Counter({stored.images.shape[1:3]: len(stored)})
    settings = config.model_dump_json(exclude={"random_flip", "source"})  # a set that was moved is still the same
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for index in range(len(stored)):
        digest.update(f"{stored.name(index)}\n".encode() + stored.stamp(index))
    return LazyDataset(
        load=lambda index: load_image(stored, config, index)[0],
        name=stored.name,
        count=len(stored),
        labels=labels,
        class_names=class_names,
        report=report,
        image_shape=config.image_shape,
        fingerprint=digest.hexdigest(),
    )


def _nothing_left(report: Report) -> str:
    if not report.skipped:
        return f"{report.source} holds no images"
    name, reason = report.skipped[0]
    return f"{report.source} holds no image that can be used: {len(report.skipped):,} were skipped, {name}: {reason}"
