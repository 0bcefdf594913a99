"""Sets whose images are encoded files: a folder, a zip, tar shards. Each is a list that can be read at random."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddpm.data.decode import ENDINGS
from ddpm.data.limits import MOST_FILE_BYTES, BrokenFile
from ddpm.errors import UserError

TRAINING_NAMES, TEST_NAMES = ("train", "training"), ("test", "val", "valid", "validation", "testing")


@dataclass
class Records:
    """Encoded images by number.

    names: one an image, as shown to the user; read(i): its bytes, or BrokenFile; labels: int64 (N,) or None;
    skipped: (name, reason) of what was refused while listing.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


def open_folder(folder: Path, split: str | None) -> Records:
    """Every image below a folder, in the order of their paths; its immediate sub-folders are the classes.

    A folder that is divided into train and test (or val) gives the split asked for, train by default. Symbolic links
    that leave the folder are skipped.
    """
    folder = _split_folder(folder, split)
    root = folder.resolve()
    names, skipped = [], []
    for where, below, files in os.walk(root):
        below.sort()
        below[:] = [name for name in below if not name.startswith(".")]
        for name in sorted(files):
            path = Path(where, name)
            if name.startswith(".") or path.suffix.lower() not in ENDINGS:
                continue
            shown = str(path.relative_to(root))
            try:
                _check_inside(path, root)
            except BrokenFile as error:
                skipped.append((shown, str(error)))
                continue
            names.append(shown)

    def read(index: int) -> bytes:
        try:
            path = root / names[index]
            _check_inside(path, root)
            with path.open("rb") as file:
                return file.read(MOST_FILE_BYTES + 1)
        except OSError as error:
            raise BrokenFile(error.strerror or str(error)) from error

    labels, class_names = classes_from_paths(names)
    return Records(names, read, labels, class_names, skipped)


def classes_from_paths(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """The first folder of each path is its class; None where any image lies outside a folder."""
    tops = [name.replace("\\", "/").split("/", 1) for name in names]
    if not tops or any(len(parts) == 1 for parts in tops):
        return None, None
    class_names = sorted({parts[0] for parts in tops})
    number = {name: index for index, name in enumerate(class_names)}
    return np.array([number[parts[0]] for parts in tops], np.int64), class_names


def _check_inside(path: Path, root: Path) -> None:
    """Only regular files below the root: no links to elsewhere, no pipes that would never end."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise BrokenFile("it is a link that leaves the folder")
    if not path.is_file():
        raise BrokenFile("it is not a regular file")


def _split_folder(folder: Path, split: str | None) -> Path:
    names = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()}
    divided = set(names) <= {*TRAINING_NAMES, *TEST_NAMES} and set(names) & set(TRAINING_NAMES)
    if split is None:
        return next(names[name] for name in TRAINING_NAMES if name in names) if divided else folder
    wanted = {"train": TRAINING_NAMES, "test": TEST_NAMES}.get(split, (split,))
    found = next((names[name] for name in wanted if name in names), None)
    if found is None:
        raise UserError(f"{folder} has no split {split!r}; it holds {', '.join(sorted(names)) or 'no folders'}")
    return found
