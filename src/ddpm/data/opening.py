"""From a set as it is stored to one that is ready for use: every image at the configuration's size and channels."""

import hashlib
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.data.config import DataConfig
from ddpm.data.dataset import LazyDataset, MemoryDataset, Report
from ddpm.data.decode import to_tensor
from ddpm.data.fit import fit
from ddpm.data.limits import MOST_MEMORY_BYTES, BrokenFile
from ddpm.data.parallel import in_parallel
from ddpm.data.stored import Arrays, Stored
from ddpm.errors import UserError


def make_ready(stored: Stored, config: DataConfig) -> MemoryDataset | LazyDataset:
    """Decode a set into memory, or, where it is larger than MOST_MEMORY_BYTES, arrange for that image by image."""
    if isinstance(stored, Arrays) and not 1 <= stored.images.shape[3] <= 4:
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
    if isinstance(stored, Arrays) and stored.images.shape[1:] == (*config.size, config.channels):
        report.sizes[config.size] = len(stored)
        images = torch.from_numpy(np.array(stored.images.transpose(0, 3, 1, 2), order="C"))
        return MemoryDataset(images, labels, class_names, report)
    images, kept = _decode_all(stored, config, report)
    if labels is not None and len(kept) < len(stored):
        labels = labels[kept]
    return MemoryDataset(images, labels, class_names, report)


def load_image(stored: Stored, config: DataConfig, index: int) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (C, H, W) as the configuration wants it, and the (height, width) it was stored at. Raises BrokenFile."""
    image = stored.image(index, config.channels, config.background)
    return to_tensor(fit(image, config.size, config.fit, config.background)), (image.height, image.width)


def _decode_all(stored: Stored, config: DataConfig, report: Report) -> tuple[Tensor, list[int]]:
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
    stored: Stored, config: DataConfig, labels: Tensor | None, class_names: list[str] | None, report: Report
) -> LazyDataset:
    if isinstance(stored, Arrays):
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
