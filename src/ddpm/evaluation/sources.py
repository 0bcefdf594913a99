"""From what the user writes to the two sides of a comparison: a model, images, or ready moments."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.data import open_dataset
from ddpm.data.config import data_section
from ddpm.data.datasets import ArraySource, EncodedSource, ImageSource
from ddpm.data.images import FORMATS, BrokenFile
from ddpm.data.sources import find_stored, split_of
from ddpm.evaluation.distances import Moments, load_moments
from ddpm.evaluation.images import DatasetImages
from ddpm.model import BUNDLED, Model, load, names_model

SAMPLED = 32  # images looked at before a set is called grey
GREY = {"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"}


def open_judged(source: str) -> Model | DatasetImages:
    """A model by any name `ddpm.load` knows, or a folder or file of images."""
    path = user_path(source)
    if path.exists() and source not in BUNDLED and not names_model(path):
        if is_moments(path):
            raise UserError(f"{source} holds moments, which go with --data; judge a model, a folder or .npz of images")
        return open_images(source)
    return load(source)


def open_reference(source: str, judged: Model | DatasetImages) -> DatasetImages | Moments:
    """Ready moments, or real images of the size and channels that are judged; an .npz that has both gives both.

    Beside a model, images are brought to its size as its training data was; images that were drawn before must have the
    reference's own size, since whoever drew them chose how.
    """
    path = user_path(source)
    moments = load_moments(path) if {"mu", "sigma"} & arrays_in(path) else None
    if moments is not None and is_moments(path):
        return moments
    reference = open_images(source, trained_with(judged) if isinstance(judged, Model) else None)
    reference.moments = moments
    if not isinstance(judged, Model) and reference.shape != judged.shape:
        raise UserError(
            f"{judged.title} holds {describe(judged.shape)} images and {source} {describe(reference.shape)} ones: "
            "bring them to one size and kind first"
        )
    return reference


def open_test(source: str | None, data: str, judged: Model | DatasetImages) -> DatasetImages | None:
    """Held-out images: what was asked for, else the test split of `data` where it has one, else none."""
    name, split, rows = apart(data)
    if source is None and split is not None:
        return None
    try:
        opened = open_reference(source or f"{name}:test{rows}", judged)
    except UserError:
        if source is not None:
            raise
        return None
    if isinstance(opened, Moments):
        raise UserError(f"--test takes images, and {source} holds moments")
    return opened


def open_images(source: str, options: dict[str, Any] | None = None) -> DatasetImages:
    """A data set with its classes, if it has any, at its own size unless `options` (of DataConfig) say otherwise."""
    stored = find_stored(source)
    height, width, channels = native_shape(stored, source)
    if options is None:
        options = {"image_size": (height, width), "channels": channels}
    elif channels != options["channels"] and apart(source)[0] != apart(options["source"] or "")[0]:
        raise UserError(
            f"{source} holds {'grey' if channels == 1 else 'colour'} images, and the model draws "
            f"{'grey' if options['channels'] == 1 else 'colour'} ones"
        )
    labels = stored.labels is not None
    dataset = open_dataset(**{**options, "source": source, "labels": labels})
    if len(dataset.report.sizes) > 1 and "fit" not in options:
        raise UserError(f"{source} holds images of {len(dataset.report.sizes)} sizes: bring them to one size first")
    if note := dataset.report.summary():
        print(note)
    return DatasetImages(dataset, source)


def apart(source: str) -> tuple[str, str | None, str]:
    """A SOURCE as its set, its split or None, and, of the Hub's, the row filter: `?column=value`, which comes last."""
    if not source.startswith("hf:"):
        return *split_of(source), ""
    head, mark, filters = source.partition("?")
    name, _, split = head.removeprefix("hf:").partition(":")
    return f"hf:{name}", split or None, mark + filters


def trained_with(model: Model) -> dict[str, Any]:
    """How images are brought to the model's shape: as its training data was, where that is known."""
    source = data_section(model.provenance).get("source")
    channels, height, width = model.image_shape
    return {**model.preprocessing._asdict(), "source": source, "image_size": (height, width), "channels": channels}


def native_shape(stored: ImageSource, source: str) -> tuple[int, int, int]:
    """(height, width, channels): the size of an image that can be read, and grey only where dozens all over it are."""
    if isinstance(stored, ArraySource):
        return stored.images.shape[1:]
    if not isinstance(stored, EncodedSource):
        raise UserError(f"{source} cannot be judged: its images are not asked for by number")
    found: list[tuple[int, int, int]] = []
    for index in torch.randperm(len(stored), generator=torch.Generator().manual_seed(0)).tolist():
        try:
            with Image.open(io.BytesIO(stored.read(index)), formats=FORMATS) as image:
                channels = 1 if image.mode in GREY else 3
            size = stored.image(index, channels, 255)
        except (BrokenFile, OSError):
            continue
        found.append((size.height, size.width, channels))
        if channels == 3 or len(found) == SAMPLED:
            break
    if not found:
        raise UserError(f"{source} holds no image that can be read")
    return *found[0][:2], found[-1][2]


def is_moments(path: Path) -> bool:
    """Whether a file is an .npz with mu or sigma and no images."""
    names = arrays_in(path)
    return bool({"mu", "sigma"} & names) and "arr_0" not in names


def arrays_in(path: Path) -> set[str]:
    """The names of the arrays in an .npz; none of any other file."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def describe(shape: Sequence[int]) -> str:
    """`32×32 colour`."""
    channels, height, width = shape
    return f"{height}×{width} {'grey' if channels == 1 else 'colour'}"
