"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

A file is: two zero bytes, a type (8 is uint8), the number of dimensions, each extent as a big-endian uint32, the data.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from ddpm.data.limits import check_array, read_bounded
from ddpm.data.stored import Arrays
from ddpm.errors import UserError

UINT8 = 8
PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file; a plain one is memory-mapped.

    Raises UserError where the header and the length of the file do not agree.
    """
    zipped = path.suffix == ".gz"
    try:
        stored = path.stat().st_size
        with gzip.open(path) if zipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != UINT8 or not 1 <= magic[3] <= 4:
                raise UserError(f"{path} is not an IDX file of bytes: it starts with {magic.hex(' ') or 'nothing'}")
            extents = file.read(4 * magic[3])
            if len(extents) < 4 * magic[3]:
                raise UserError(f"{path} ends inside its header")
            shape = struct.unpack(f">{magic[3]}I", extents)
            size = check_array(path, shape, 1, stored, zipped)
            if zipped:
                data = read_bounded(file, size + 1)
                if len(data) != size:
                    raise UserError(f"{path} does not hold the {size:,} bytes that its header announces")
                return np.frombuffer(data, np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * len(shape)
    if stored != header + size:
        raise UserError(f"{path} holds {stored - header:,} bytes where its header announces {size:,}")
    return np.memmap(path, np.uint8, "r", header, shape)


def find_idx(folder: Path, split: str) -> Path | None:
    """The images of a split in a folder laid out like MNIST, or None."""
    for separator in "-.":
        for ending in ("", ".gz"):
            path = folder / f"{PREFIX.get(split, split)}-images{separator}idx3-ubyte{ending}"
            if path.is_file():
                return path
    return None


def open_idx(images_path: Path, class_names: list[str] | None = None) -> Arrays:
    """Images (N, H, W) or (N, H, W, C) and, where the matching labels file lies beside them, their classes."""
    images = read_idx(images_path)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise UserError(f"{images_path} holds {images.ndim} dimensions; images have N, H, W")
    labels = None
    labels_path = _labels_path(images_path)
    if labels_path is not None:
        labels = read_idx(labels_path).astype(np.int64)
        if labels.shape != (len(images),):
            raise UserError(f"{labels_path} does not hold one label for each of {len(images):,} images")
    return Arrays(images, labels, class_names)


def _labels_path(images_path: Path) -> Path | None:
    stem = images_path.name.removesuffix(".gz")
    name = stem.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    candidates = (images_path.with_name(name + ending) for ending in ("", ".gz"))
    return None if name == stem else next((path for path in candidates if path.is_file()), None)
