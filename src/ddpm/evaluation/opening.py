"""Open the two sides of an evaluation: a model or images, and real images or precomputed statistics of them."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.common.files import is_model, is_run, user_path
from ddpm.data.config import checked_config, data_section
from ddpm.data.datasets import make_ready
from ddpm.data.images import FORMATS, BrokenFile, convert_command
from ddpm.data.sources import find_stored, split_of
from ddpm.data.stored import ArraySource, EncodedSource, ImageSource
from ddpm.evaluation.distances import Moments, load_moments
from ddpm.evaluation.image_sets import DatasetImages
from ddpm.interop.layouts import is_checkpoint, model_folder
from ddpm.model import BUNDLED, Model, load

GREY_SAMPLE = 32  # images that must all be grey before a set counts as grey
GREY_MODES = {"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"}
FITS = ("crop", "pad")


def open_candidate(source: str) -> Model | DatasetImages:
    """Open a model by any name that `ddpm.load` knows, or a folder or file of images."""
    path = user_path(source)
    if path.exists() and source not in BUNDLED and not names_model(path):
        if is_moments(path):
            raise UserError(f"{source} holds only precomputed statistics: give it to --data")
        return open_images(source)
    return load(source)


def names_model(path: Path) -> bool:
    """Whether an existing path is a model, a run, or a part of one that `ddpm.load` opens."""
    return is_run(path) or is_model(path) or model_folder(path) != path or is_checkpoint(path)


def open_reference(source: str, candidate: Model | DatasetImages, fit: str | None = None) -> DatasetImages | Moments:
    """Open precomputed statistics, or real images of the candidate's size and channels. An .npz may hold both.

    For a model, images are preprocessed as its training data was. For images, the reference must have their size
    already, unless `fit` ("crop" or "pad") says how to resize it. Raises UserError if the two sides do not match.
    """
    if fit not in (None, *FITS):
        raise UserError(f"--fit takes crop or pad, not {fit!r}")
    path = user_path(source)
    moments = load_moments(path) if {"mu", "sigma"} & arrays_in(path) else None
    if moments is not None and is_moments(path):
        if fit is not None:
            raise UserError(f"--fit resizes images, and {source} holds only precomputed statistics")
        return moments
    options = data_options(candidate) if isinstance(candidate, Model) else None
    if fit is not None:
        channels, height, width = candidate.image_shape if isinstance(candidate, Model) else candidate.shape
        options = {"image_size": (height, width), "channels": channels, **(options or {}), "fit": fit}
    reference = open_images(source, options)
    reference.moments = moments
    if not isinstance(candidate, Model) and reference.shape != candidate.shape:
        raise UserError(
            f"{candidate.title} holds {format_shape(candidate.shape)} images and {source} "
            f"{format_shape(reference.shape)} ones: both sides need the same size and channels; --fit crop or "
            "--fit pad resizes the real images"
        )
    return reference


def open_test(
    source: str | None, data: str, candidate: Model | DatasetImages, fit: str | None = None
) -> DatasetImages | None:
    """Open the held-out images: `source`, else the test split of `data` if it has one, else None."""
    name, split, rows = split_source(data)
    if source is None and split is not None:
        return None
    try:
        opened = open_reference(source or f"{name}:test{rows}", candidate, fit)
    except UserError:
        if source is not None:
            raise
        return None
    if isinstance(opened, Moments):
        raise UserError(f"--test takes images, and {source} holds precomputed statistics")
    return opened


def open_images(source: str, options: dict[str, Any] | None = None) -> DatasetImages:
    """Open a data set with its classes, if it has any.

    Args:
        options: fields of DataConfig, with image_size and channels; by default the images' own size and channels.
            Images are converted to other channels only if `options["source"]`, a model's training data, is this set.

    Raises UserError if the channels differ, or if the images have several sizes and `options` has no "fit".
    """
    stored = find_stored(source)
    height, width, channels = native_shape(stored, source)
    options = {"image_size": (height, width), "channels": channels} if options is None else options
    if channels != options["channels"] and split_source(source)[0] != split_source(options.get("source") or "")[0]:
        raise UserError(
            f"{source} holds {_colour(channels)} images, and the images to evaluate are "
            f"{_colour(options['channels'])}: convert each, e.g. with {convert_command(options['channels'])}"
        )
    config = checked_config(**{**options, "source": source, "labels": stored.labels is not None})
    dataset = make_ready(stored, config)
    if len(dataset.report.sizes) > 1 and "fit" not in options:
        raise UserError(
            f"{source} holds images of {len(dataset.report.sizes)} sizes: resize them to one size first, or give "
            "--fit crop or --fit pad if they are the real images"
        )
    if note := dataset.report.summary():
        print(note)
    return DatasetImages(dataset, source)


def split_source(source: str) -> tuple[str, str | None, str]:
    """Split a SOURCE into its data set, its split or None, and the row filter of a Hub set (`?column=value`) or ""."""
    if not source.startswith("hf:"):
        return *split_of(source), ""
    head, mark, filters = source.partition("?")
    name, _, split = head.removeprefix("hf:").partition(":")
    return f"hf:{name}", split or None, mark + filters


def data_options(model: Model) -> dict[str, Any]:
    """Return the fields of DataConfig that bring images to the model's shape as its training data was, if known."""
    source = data_section(model.provenance).get("source")
    channels, height, width = model.image_shape
    return {**model.preprocessing._asdict(), "source": source, "image_size": (height, width), "channels": channels}


def native_shape(stored: ImageSource, source: str) -> tuple[int, int, int]:
    """Return (height, width, channels) of the stored images.

    The size is that of one readable image. The set counts as grey if dozens of randomly chosen images are grey.
    Raises UserError if no image can be read.
    """
    if isinstance(stored, ArraySource):
        return stored.images.shape[1:]
    if not isinstance(stored, EncodedSource):
        raise UserError(f"{source} cannot be evaluated: its images have no numbers")
    found: list[tuple[int, int, int]] = []
    for index in torch.randperm(len(stored), generator=torch.Generator().manual_seed(0)).tolist():
        try:
            with Image.open(io.BytesIO(stored.read(index)), formats=FORMATS) as image:
                channels = 1 if image.mode in GREY_MODES else 3
            size = stored.image(index, channels, 255)
        except (BrokenFile, OSError):
            continue
        found.append((size.height, size.width, channels))
        if channels == 3 or len(found) == GREY_SAMPLE:
            break
    if not found:
        raise UserError(f"{source} holds no image that can be read")
    return *found[0][:2], found[-1][2]


def is_moments(path: Path) -> bool:
    """Whether a file is an .npz with mu or sigma and no images."""
    names = arrays_in(path)
    return bool({"mu", "sigma"} & names) and "arr_0" not in names


def arrays_in(path: Path) -> set[str]:
    """Return the names of the arrays in an .npz; an empty set for any other file."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def format_shape(shape: Sequence[int]) -> str:
    """Return (C, H, W) as `32×32 colour`."""
    channels, height, width = shape
    return f"{height}×{width} {_colour(channels)}"


def _colour(channels: int) -> str:
    return {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
