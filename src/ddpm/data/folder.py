"""A folder of images; its immediate sub-folders are the classes."""

import os
from pathlib import Path
from typing import NoReturn

from ddpm.common.errors import UserError
from ddpm.common.files import is_run
from ddpm.data.datasets import EncodedSource, classes_from_paths, file_state
from ddpm.data.images import ENDINGS, MOST_FILE_BYTES, UNREAD, UNREAD_FORMAT, BrokenFile, printable

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
SPLIT_FOLDERS = {name for names in SPLITS.values() for name in names}
UNPACKED_MACOSX = "__MACOSX"  # beside what a Mac has packed: files of the same names, none of them an image
LINKED_FOLDER = "it is a link to a folder, which is not followed"
RUN_FOLDER = "it is a training run, whose pictures are no data"


def open_folder(folder: Path, split: str | None) -> EncodedSource:
    """Every image below a folder, in the order of their paths.

    Of a folder that holds one folder of folders and no images it is that one, as downloads unpack. A folder that is
    divided into train and test (or val) gives the split asked for, train by default; folders without any image are not
    counted. What is hidden is passed over; training runs, links to folders, links that leave the folder and what is no
    regular file are skipped and reported. A folder that cannot be listed is an error: without its class, the others
    would go by other numbers.
    """

    def refuse(error: OSError) -> NoReturn:
        reason = f"{error.filename} cannot be read: {error.strerror or error}"
        raise UserError(f"{reason}; make it readable, or move it out of {folder}") from error

    try:
        root = _split_folder(_unwrapped(folder), split).resolve()
    except OSError as error:
        refuse(error)
    paths, skipped = [], []
    for where, below, files in os.walk(root, onerror=refuse):
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in list(below):
            if reason := _folder_trouble(path := os.path.join(where, name)):
                below.remove(name)
                skipped.append((printable(os.path.relpath(path, root)), reason))
        for name in sorted(files):
            if not is_image(name):
                continue
            path = os.path.join(where, name)
            try:
                _check_inside(path, root)
                paths.append(path)
            except BrokenFile as error:
                skipped.append((printable(os.path.relpath(path, root)), str(error)))

    def read(index: int) -> bytes:
        try:
            _check_inside(paths[index], root)
            with open(paths[index], "rb") as file:
                return file.read(MOST_FILE_BYTES + 1)
        except OSError as error:
            raise BrokenFile(error.strerror or str(error)) from error

    names = [printable(os.path.relpath(path, root)) for path in paths]
    return EncodedSource(names, read, lambda index: file_state(paths[index]), *classes_from_paths(names), skipped)


def _folder_trouble(path: str) -> str | None:
    """Why nothing in a folder is of the set."""
    if os.path.islink(path):
        return LINKED_FOLDER
    return RUN_FOLDER if is_run(Path(path)) else None


def _check_inside(path: str, root: Path) -> None:
    """Only regular files below the root: no links to elsewhere, no pipes that would never end; of formats we read."""
    if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
        raise BrokenFile("it is a link that leaves the folder")
    if not os.path.isfile(path):
        raise BrokenFile("it is not a regular file")
    if path.lower().endswith(UNREAD):
        raise BrokenFile(UNREAD_FORMAT)


def _unwrapped(folder: Path) -> Path:
    """`animals10/` that holds `raw-img/` with the classes in it is raw-img; one class, or one split, stays as it is."""
    while len(below := _folders(folder)) == 1 and not holds_images(folder):
        (inner,) = below
        if inner.name.lower() in SPLIT_FOLDERS or not _folders(inner):
            break
        folder = inner
    return folder


def holds_images(folder: Path) -> bool:
    """Whether any file directly in the folder has the name of an image."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def is_image(name: str) -> bool:
    """By a file's name: of any format there is, be it that we do not read it."""
    return name.lower().endswith(ENDINGS + UNREAD) and not name.startswith(".")


def _folders(folder: Path) -> list[Path]:
    """The folders directly in it that have an image somewhere below: what else a download brings is no class of it."""
    return [path for path in _visible(folder) if _has_images(path)]


def _has_images(folder: Path) -> bool:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if holds_images(here):
            return True
        waiting += _visible(here)
    return False


def _visible(folder: Path) -> list[Path]:
    """The folders directly in it but for hidden ones, links and runs; of a million files beside them none is met."""
    with os.scandir(folder) as entries:
        here = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [Path(entry.path) for entry in here if not is_hidden(entry.name) and not _folder_trouble(entry.path)]


def is_hidden(name: str) -> bool:
    """Of a file or folder, by its name: passed over without a word."""
    return name.startswith(".") or name == UNPACKED_MACOSX


def _split_folder(folder: Path, split: str | None) -> Path:
    below = {path.name.lower(): path for path in _folders(folder)}
    if split is None:
        _refuse_mixture(folder, below)
        divided = below.keys() <= SPLIT_FOLDERS
        return next((below[name] for name in SPLITS["train"] if divided and name in below), folder)
    found = next((below[name] for name in SPLITS.get(split, (split,)) if name in below), None)
    if found is None:
        raise UserError(f"{folder} has no split {split!r}; it holds {', '.join(sorted(below)[:8]) or 'no folders'}")
    return found


def _refuse_mixture(folder: Path, below: dict[str, Path]) -> None:
    """Splits beside other folders would pass for classes, and test images for training ones.

    One folder of such a name with images and no folders in it may be a class: cars, buses and a train.
    """
    splits = [name for names in SPLITS.values() for name in names if name in below]  # train first
    others = sorted(below.keys() - SPLIT_FOLDERS)
    if others and (len(splits) > 1 or any(_folders(below[name]) for name in splits)):
        raise UserError(
            f"{folder} holds {_listed(splits)} beside {_listed(others)}: name the split, as in "
            f"{folder}:{splits[0]}, or, if all of them are classes, rename {splits[0]}"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
