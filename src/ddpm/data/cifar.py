"""CIFAR-10 and CIFAR-100, in their binary and their Python form: labels and 3x32x32 bytes, plane by plane."""

from pathlib import Path

import numpy as np

from ddpm.data.pickled import read_batch
from ddpm.data.stored import Arrays
from ddpm.errors import UserError

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PIXELS = 3 * 32 * 32
MOST_BATCH_BYTES = 2**28  # CIFAR-100's training file has 155 million
# The files of a split, and how many label bytes a row begins with; CIFAR-100 has a coarse label, then the fine one.
BINARY = {"train": {"data_batch_*.bin": 1, "train.bin": 2}, "test": {"test_batch.bin": 1, "test.bin": 2}}
PYTHON = {"train": ["data_batch_[0-9]", "train"], "test": ["test_batch", "test"]}


def open_cifar(folder: Path, split: str) -> Arrays | None:
    """The batches of a split in a folder laid out as they are distributed, or None where there are none."""
    for pattern, label_bytes in BINARY.get(split, {}).items():
        if paths := sorted(folder.glob(pattern)):
            batches = [_read_binary(path, label_bytes) for path in paths]
            return _joined(batches, _listed_names(folder, 10 if label_bytes == 1 else 100))
    for pattern in PYTHON.get(split, []):
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        if paths and any((folder / meta).is_file() for meta in ("batches.meta", "meta")):
            return _joined([_read_python(path) for path in paths], _pickled_names(folder))
    return None


def _joined(batches: list[tuple[np.ndarray, np.ndarray]], class_names: list[str] | None) -> Arrays:
    images = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([labels for _, labels in batches]).astype(np.int64)
    return Arrays(images, labels, class_names or (CIFAR10_NAMES if labels.max() < 10 else None))


def _read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    data = _read(path)
    if not data or len(data) % (PIXELS + label_bytes):
        raise UserError(f"{path} is not a whole number of {PIXELS + label_bytes}-byte CIFAR rows")
    table = np.frombuffer(data, np.uint8).reshape(-1, PIXELS + label_bytes)
    return table[:, label_bytes:], table[:, label_bytes - 1]


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_batch(_read(path), path)
    images, labels = batch.get(b"data"), batch.get(b"labels", batch.get(b"fine_labels"))
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != PIXELS or len(images) == 0:
        raise UserError(f"{path} holds no array of {PIXELS}-byte CIFAR rows under b'data'")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(x) is int for x in labels):
        raise UserError(f"{path} does not hold one label for each of {len(images):,} images")
    if not all(0 <= label < 256 for label in labels):
        raise UserError(f"{path} holds labels outside 0..255")
    return images, np.array(labels)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BATCH_BYTES:
            raise UserError(f"{path} is far larger than any CIFAR batch")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _listed_names(folder: Path, count: int) -> list[str] | None:
    for path in (folder / "batches.meta.txt", folder / "fine_label_names.txt"):
        if path.is_file() and path.stat().st_size < 10_000:
            names = path.read_text(errors="replace").split()
            if len(names) == count:
                return names
    return None


def _pickled_names(folder: Path) -> list[str] | None:
    for path, key in ((folder / "batches.meta", b"label_names"), (folder / "meta", b"fine_label_names")):
        if path.is_file():
            names = read_batch(_read(path), path).get(key)
            if isinstance(names, list) and all(isinstance(name, bytes) for name in names):
                return [name.decode("utf-8", "replace") for name in names]
    return None
