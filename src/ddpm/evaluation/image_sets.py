"""The images that metrics compare: those of a data set, or those that a model samples.

Also the two operations on sets that several metrics need: labels under the other set's class names, and a subset.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import content_key
from ddpm.common.pixels import to_uint8
from ddpm.data.datasets import ImageDataset, matched_by_number
from ddpm.evaluation.cache import Chunks
from ddpm.evaluation.distances import Moments
from ddpm.model import Model, SamplingOptions

CHUNK = 512


class ImageSet:
    """uint8 images by number."""

    title: str  # for tables and messages
    fingerprint: str  # hash of the content
    shape: tuple[int, int, int]  # (C, H, W)
    chunk: int = CHUNK  # how many images are processed at once
    class_names: list[str] | None = None
    moments: Moments | None = None  # precomputed feature statistics that came with the images

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        """Return uint8 (n, C, H, W)."""
        raise NotImplementedError

    @cached_property
    def labels(self) -> Tensor | None:
        """int64 (N,), or None."""
        return None

    def prepare(self, progress: bool) -> None:
        """Make the images that do not exist yet. Every process calls it and makes its share."""

    def classes(self) -> tuple[Tensor, list[str]]:
        """Return labels (N,) and class names; UserError if there are none."""
        if self.labels is None or self.class_names is None:
            raise UserError(f"needs classes, and {self.title} has none")
        return self.labels, self.class_names

    def labels_in(self, names: list[str]) -> Tensor:
        """Return the labels (N,) as indices into `names`, the class names of another set.

        Classes are matched by name, or by number if one side only has numbers for names. Raises UserError if a class
        is not in `names`.
        """
        labels, own = self.classes()
        if matched_by_number(own, names):
            return labels
        if set(own) - set(names):
            raise UserError(
                f"needs the same classes on both sides: {self.title} has {', '.join(own[:5])}, … and the real images "
                f"{', '.join(names[:5])}, …"
            )
        return torch.tensor([names.index(name) for name in own])[labels]


def subset_rows(size: int, num: int) -> Tensor:
    """Return at most `num` of the rows 0 … size-1, int64, sorted.

    The choice is random but fixed, so a set that is sorted by class keeps its class proportions.
    """
    if num >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:num].sort().values


class DatasetImages(ImageSet):
    """The images of a data set, in its own order."""

    def __init__(self, dataset: ImageDataset, title: str):
        self.dataset, self.title, self.shape = dataset, title, dataset.image_shape
        self.order = torch.arange(len(dataset))
        self.fingerprint, self.class_names = dataset.fingerprint, dataset.class_names

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels (N,), read through `batch` in chunks.

        A broken image is replaced by its neighbour, and only `batch` knows whose class is then right. A set that does
        not fit into memory decodes its images for this, so it happens only when labels are needed.
        """
        if self.class_names is None:
            return None
        parts = [self.dataset.batch(rows)[1] for rows in self.order.split(CHUNK)]
        return torch.cat([part for part in parts if part is not None])

    @property
    def stored_labels(self) -> Tensor | None:
        """Labels (N,) as they are stored, without decoding an image; those of broken images are not corrected."""
        return getattr(self.dataset, "labels", None)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        return self.dataset.batch(self.order[rows])[0]


class GeneratedImages(ImageSet):
    """Images 0 … num-1 of a model's seed. `prepare` samples them into the cache.

    A larger `num` with the same options reuses the images that exist.

    Args:
        options: see `SamplingOptions`; `changes` are fields that replace those of `options`. Resolved, they are the
            cache key together with the model's.
    """

    def __init__(
        self, model: Model, num: int, title: str | None = None, options: SamplingOptions | None = None, **changes: Any
    ):
        if num < 1:
            raise UserError(f"the number of images must be at least 1, not {num}")
        self.options = SamplingOptions.of(options, **changes).resolved(model)
        assert self.options.steps is not None
        assert self.options.batch_size is not None
        self.model, self.title, self.shape = model, title or f"model {model.weights_hash}", model.image_shape
        size = self.options.batch_size
        self.chunk = -(-CHUNK // size) * size  # whole batches, so that only the last forward pass is padded
        self.labels = self.options.labels_of(range(num))
        self.class_names = model.class_names
        self.settings = {**model.cache_key, **self.options.as_dict()}
        self.fingerprint = content_key(self.settings)
        self.evaluations = self.options.spec.evaluations(self.options.steps)  # of the network, per image
        self.chunks = Chunks("images", self.settings, num, self.chunk)

    @property
    def default_options(self) -> list[str]:
        """The sampling options that have their default value, given the sampler and its steps."""
        usual = SamplingOptions(sampler=self.options.sampler, steps=self.options.steps).resolved(self.model).as_dict()
        given = self.options.as_dict()
        return [name for name in given if name not in ("sampler", "steps") and given[name] == usual.get(name)]

    def __len__(self) -> int:
        return len(self.chunks)

    def prepare(self, progress: bool) -> None:
        assert self.options.steps is not None
        self.model.compile_if_worthwhile(len(self), self.options.steps)

        def sampled(rows: range) -> Iterator[np.ndarray]:
            for _, images in self.model.sample_batches(rows, self.options):
                yield to_uint8(images).numpy()

        self.chunks.fill(sampled, "sampling", progress)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        return torch.from_numpy(self.chunks[rows])
