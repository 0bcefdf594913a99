"""CIFAR-10 and CIFAR-100 batches, in their binary form: label byte(s), then 3x32x32 bytes, plane by plane."""

from pathlib import Path

import numpy as np

from ddpm.data.arrays import Arrays
from ddpm.errors import UserError

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PIXELS = 3 * 32 * 32
# (files of the split, label bytes a row, which of them is the class)
BINARY = {
    "train": [("data_batch_*.bin", 1, 0), ("train.bin", 2, 1)],
    "test": [("test_batch.bin", 1, 0), ("test.bin", 2, 1)],
}


def find_cifar_binary(folder: Path, split: str) -> tuple[list[Path], int, int] | None:
    """(files, label bytes a row, index of the class byte) of a folder of binary batches, or None."""
    for pattern, label_bytes, which in BINARY.get(split, []):
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths, label_bytes, which
    return None


def open_cifar_binary(paths: list[Path], label_bytes: int, which: int) -> Arrays:
    """Read binary batches, in the order of their names."""
    rows = []
    for path in paths:
        size = path.stat().st_size
        if size == 0 or size % (PIXELS + label_bytes):
            raise UserError(f"{path} is not a whole number of {PIXELS + label_bytes}-byte CIFAR rows")
        rows.append(np.fromfile(path, np.uint8).reshape(-1, PIXELS + label_bytes))
    table = np.concatenate(rows)
    images = table[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(images, table[:, which].astype(np.int64), _class_names(paths[0].parent, label_bytes))


def _class_names(folder: Path, label_bytes: int) -> list[str] | None:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        path = folder / name
        if path.is_file() and path.stat().st_size < 10_000:
            names = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            if len(names) == (10 if label_bytes == 1 else 100):
                return names
    return CIFAR10_CLASSES if label_bytes == 1 else None
