"""The images that are judged or compared with: a data set's, or a model's as they are drawn."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.common.errors import UserError
from ddpm.common.files import content_key
from ddpm.common.hardware import compute_dtype, process_rank
from ddpm.common.pixels import to_uint8
from ddpm.data.datasets import ImageDataset
from ddpm.evaluation.cache import Chunks, sign_of_life
from ddpm.evaluation.distances import Moments
from ddpm.model import Model
from ddpm.samplers import DEFAULT_SAMPLER, find_sampler

CHUNK = 512


class ImageSet:
    """uint8 images by number, with what names them.

    title: for tables; fingerprint: hash of the content; shape: (C, H, W); chunk: how many are worked on at once;
    labels: int64 (N,) or None; class_names: one a class, or None; moments: ready ones that came with the images, of
    the larger set that they stand for, or None.
    """

    title: str
    fingerprint: str
    shape: tuple[int, int, int]
    chunk: int = CHUNK
    class_names: list[str] | None = None
    moments: Moments | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        """uint8 (n, C, H, W)."""
        raise NotImplementedError

    @cached_property
    def labels(self) -> Tensor | None:
        return None

    def prepare(self, progress: bool) -> None:
        """Make this process's share of what is not there yet; the first process returns when all of it is."""

    def classes(self) -> tuple[Tensor, list[str]]:
        """Labels and class names; UserError where there are none."""
        if self.labels is None or self.class_names is None:
            raise UserError(f"needs classes, and {self.title} has none")
        return self.labels, self.class_names


class DatasetImages(ImageSet):
    """A data set, in its own order."""

    def __init__(self, dataset: ImageDataset, title: str):
        self.dataset, self.title, self.shape = dataset, title, dataset.image_shape
        self.order = torch.arange(len(dataset))
        self.fingerprint, self.class_names = dataset.fingerprint, dataset.class_names

    @cached_property
    def labels(self) -> Tensor | None:
        """In chunks, and only when they are asked for: a set too large for memory decodes its images for them.

        A broken image is replaced by its neighbour, whose class is then the right one, so `batch` has to say.
        """
        if self.class_names is None:
            return None
        parts = [self.dataset.batch(rows)[1] for rows in self.order.split(CHUNK)]
        return torch.cat([part for part in parts if part is not None])

    @property
    def stored_labels(self) -> Tensor | None:
        """The same without a look at any image, and so without regard to those that are broken."""
        return getattr(self.dataset, "labels", None)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        return self.dataset.batch(self.order[rows])[0]


class GeneratedImages(ImageSet):
    """Images 0 … num-1 of a model's seed, drawn by `prepare` and kept on the disk.

    `options` go to `Model.sample_batches`. More images of the same settings go on from those that are there.
    """

    def __init__(self, model: Model, num: int, title: str | None = None, **options: Any):
        if num < 1:
            raise UserError(f"the number of images must be at least 1, not {num}")
        self.model, self.title, self.shape = model, title or f"model {model.weights_hash}", model.image_shape
        size = options.pop("batch_size", None) or model.default_batch_size
        self.chunk = -(-CHUNK // size) * size  # whole batches, so that no forward pass is padded but the last
        usual = {
            "sampler": DEFAULT_SAMPLER,
            "steps": 20,
            "seed": 0,
            "guidance": 1.0,
            "clip": "static",
            "precision": "auto",
        }
        self.options = {**usual, **options}
        self.options["spacing"] = self.options.get("spacing") or find_sampler(self.options["sampler"]).spacing
        self.options["batch_size"] = size
        chosen = model.resolve_labels(self.options.get("labels"))
        self.labels = None if chosen is None else torch.tensor([chosen[i % len(chosen)] for i in range(num)])
        self.class_names = model.class_names
        self.settings = {
            **model.cache_key,
            **self.options,
            "precision": str(compute_dtype(self.options["precision"], model.device)).removeprefix("torch."),
            "labels": chosen,
        }
        self.fingerprint = content_key(self.settings)
        self.chunks = Chunks("images", self.settings, num, self.chunk)

    @property
    def labels_told(self) -> list[int] | str | None:
        """The classes that images take in turn, in a word where those are all there are."""
        chosen = self.settings["labels"]
        return "all" if chosen is not None and chosen == list(range(len(self.class_names or []))) else chosen

    @property
    def evaluations(self) -> int:
        """Network evaluations an image."""
        return find_sampler(self.options["sampler"]).evaluations(self.options["steps"])

    def __len__(self) -> int:
        return len(self.chunks)

    def prepare(self, progress: bool) -> None:
        missing, first = self.chunks.missing(self.chunks.mine()), process_rank()[0] == 0
        num = sum(len(self.chunks.bounds(start)) for start in missing)
        self.model.compile_if_worthwhile(len(self), self.options["steps"])
        with tqdm(total=num, desc="sampling", unit="image", disable=not (progress and first and missing)) as bar:
            for start in missing:
                parts = []
                batches = self.model.sample_batches(
                    self.chunks.bounds(start), callback=lambda _: sign_of_life(), **self.options
                )
                for indices, images in batches:
                    parts.append(to_uint8(images))
                    bar.update(len(indices))
                self.chunks.write(start, torch.cat(parts).numpy())
        if first:
            self.chunks.wait()

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        return torch.from_numpy(self.chunks[rows])
