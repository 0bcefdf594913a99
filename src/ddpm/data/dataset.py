"""A data set ready for use: uint8 images of one shape, with labels, a fingerprint and a report of what was skipped."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import cpu_count

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.data.arrays import Arrays
from ddpm.data.config import DataConfig
from ddpm.data.decode import decode, in_mode, to_tensor
from ddpm.data.fit import fit
from ddpm.data.limits import BrokenFile
from ddpm.data.records import Records
from ddpm.errors import UserError
from ddpm.randomness import derive_seed

NAMED = 10  # broken files named in a summary


@dataclass
class Report:
    """What reading a source came to.

    sizes: how many images had which (height, width) as stored; skipped: (name, reason) of every file left out.
    """

    source: str
    sizes: Counter = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def summary(self) -> str:
        """The skipped files in a few lines, or an empty string."""
        if not self.skipped:
            return ""
        lines = [f"skipped {len(self.skipped):,} files of {self.source}:"]
        lines += [f"  {name}: {reason}" for name, reason in self.skipped[:NAMED]]
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
        """The images that come at these places in the endless shuffled order of `seed`.

        Each epoch is a fresh permutation, a function of (seed, epoch) alone, so any place is found without replaying.
        """
        return self.batch(epoch_order(len(self), seed, numbers))


class MemoryDataset(ImageDataset):
    """A set that is decoded once and kept as uint8.

    `images` (N, C, H, W) and `labels` (N,) may be moved to an accelerator; `batch` answers where they are.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, class_names: list[str] | None, report: Report):
        self.images, self.labels, self.class_names, self.report = images, labels, class_names, report
        self.image_shape = tuple(images.shape[1:])
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


def epoch_order(size: int, seed: int, numbers: range) -> Tensor:
    """Which image comes at each place of the endless order: epoch g // size, its permutation at g % size."""
    places = torch.arange(numbers.start, numbers.stop, numbers.step)
    indices = torch.empty_like(places)
    for epoch in torch.unique(places // size).tolist():
        here = places // size == epoch
        indices[here] = _permutation(size, seed, epoch)[places[here] % size]
    return indices


_last_permutations: dict[tuple[int, int, int], Tensor] = {}


def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    key = (size, seed, epoch)
    if key not in _last_permutations:
        while len(_last_permutations) > 1:  # this epoch's and the last one's; a batch may straddle both
            _last_permutations.pop(next(iter(_last_permutations)), None)
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        _last_permutations[key] = torch.randperm(size, generator=generator)
    return _last_permutations[key]


def from_arrays(arrays: Arrays, config: DataConfig) -> MemoryDataset:
    """A stored array at the configuration's size and channels, in memory."""
    count, height, width, channels = arrays.images.shape
    report = Report(config.source, Counter({(height, width): count}))
    if channels == config.channels and (height, width) == config.size:
        images = torch.from_numpy(np.array(arrays.images.transpose(0, 3, 1, 2), order="C"))
    else:
        if channels not in (1, 2, 3, 4):
            raise UserError(f"{config.source} holds images of {channels} channels; 1 to 4 are understood")

        def convert(index: int) -> Tensor:
            pixels = arrays.images[index]
            image = in_mode(
                Image.fromarray(pixels[..., 0] if channels == 1 else pixels), config.channels, config.background
            )
            return to_tensor(fit(image, config.size, config.fit, config.background))

        images = torch.empty(count, *config.image_shape, dtype=torch.uint8)
        with ThreadPoolExecutor(cpu_count()) as pool:
            for row, image in zip(images, pool.map(convert, range(count), chunksize=64), strict=True):
                row.copy_(image)
    return MemoryDataset(images, _labels(arrays, config), _names(arrays, config), report)


def from_records(records: Records, config: DataConfig) -> MemoryDataset:
    """Encoded files, decoded in parallel and kept; the broken ones are left out and reported."""
    report = Report(config.source, skipped=list(records.skipped))

    def load(index: int) -> tuple[Tensor, tuple[int, int]] | str:
        try:
            image = decode(records.read(index), config.channels, config.background)
            return to_tensor(fit(image, config.size, config.fit, config.background)), (image.height, image.width)
        except BrokenFile as error:
            return str(error)

    images = torch.empty(len(records), *config.image_shape, dtype=torch.uint8)
    kept = []
    with ThreadPoolExecutor(cpu_count()) as pool:
        for index, loaded in enumerate(pool.map(load, range(len(records)))):
            if isinstance(loaded, str):
                report.skipped.append((records.names[index], loaded))
            else:
                images[len(kept)], size = loaded
                report.sizes[size] += 1
                kept.append(index)
    if not kept:
        raise UserError(_nothing_left(config.source, report))
    labels = _labels(records, config)
    return MemoryDataset(images[: len(kept)], None if labels is None else labels[kept], _names(records, config), report)


def _labels(found: Arrays | Records, config: DataConfig) -> Tensor | None:
    if not config.labels:
        return None
    if found.labels is None:
        raise UserError(
            f"{config.source} has no classes: put its images in one sub-folder a class, or set labels: false"
        )
    return torch.from_numpy(found.labels)


def _names(found: Arrays | Records, config: DataConfig) -> list[str] | None:
    if not config.labels:
        return None
    return found.class_names or [str(number) for number in range(int(found.labels.max()) + 1)]


def _nothing_left(source: str, report: Report) -> str:
    if not report.skipped:
        return f"{source} holds no images"
    name, reason = report.skipped[0]
    return f"{source} holds no image that can be used: all {len(report.skipped):,} files are broken ({name}: {reason})"


def _content_hash(images: Tensor, labels: Tensor | None) -> str:
    digest = hashlib.blake2b(repr((tuple(images.shape), labels is not None)).encode(), digest_size=16)
    digest.update(images.contiguous().numpy())
    if labels is not None:
        digest.update(labels.contiguous().numpy())
    return digest.hexdigest()
