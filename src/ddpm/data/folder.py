"""List the images in a folder, and open a folder of images as a data set. Sub-folders are classes."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddpm.common.errors import UserError
from ddpm.common.files import is_run, user_path
from ddpm.data.images import ENDINGS, MOST_FILE_BYTES, UNREAD, UNREAD_FORMAT, BrokenFile, printable
from ddpm.data.stored import EncodedSource, classes_of, file_state

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
SPLIT_FOLDERS = {name for names in SPLITS.values() for name in names}
MANIFEST = "dataset.json"  # the class of each image, as EDM's and StyleGAN's tools write it

CONTACT_SHEET = "contact_sheet.png"  # the default output of `ddpm data`
OWN_OUTPUT = "it is an output of an earlier ddpm command"
RUN_FOLDER = "it is a training run, whose pictures are not data"
READ_ALREADY = "it is read already, under another name"
SUB_FOLDER = "it is a folder; only the images beside it are read"
NOT_REGULAR = "it is not a regular file"
DEAD_LINK = "it is a link to nothing"
CHANGED_LINK = "it has become a link that leaves the folder since it was listed"

Skipped = list[tuple[str, str]]


def list_images(folder: str | Path, *, recursive: bool = True) -> tuple[list[Path], Skipped]:
    """List the image files in a folder. Every command that takes a folder of images uses this listing.

    Passed over without a word: hidden files and folders (`.name`, and with them macOS's `._name`), `__MACOSX`,
    `@eaDir` (the thumbnails of a Synology), and files whose name does not end like an image. Skipped with a reason:
    formats that are not read (HEIC, AVIF, JPEG XL), anything but regular files, links to nothing, training runs, and
    the outputs of earlier commands. Those outputs are `contact_sheet.png`; `report.png` beside `report.csv`; and
    `NAME_compare.png` beside `NAME.png`, with their `NAME_std.png`, `NAME_samples.png` and `NAME_draws.png`.
    Links to image files and to folders are followed, but no folder is read twice.

    Unless `recursive`, sub-folders are skipped with a reason.

    Returns:
        paths: the images, each below `folder`. A folder's files come in the order of their names, before the files
            of its sub-folders.
        skipped: (name relative to `folder`, reason) in the same order. The names can be printed safely.

    Raises UserError if a folder cannot be listed.
    """
    root = user_path(folder)
    names, skipped = _scan(root, recursive)
    return [root / name for name in names], [(printable(name), reason) for name, reason in skipped]


def picture_names(paths: Sequence[Path]) -> list[str]:
    """Return the paths without their endings. The ending stays if another image would get the same name."""
    stems = [path.with_suffix("") for path in paths]
    uses = Counter([*stems, *paths])  # a.png.bmp may not become a.png if that exists too
    return [str(stem if uses[stem] == 1 else path) for stem, path in zip(stems, paths, strict=True)]


def open_folder(folder: Path, split: str | None) -> EncodedSource:
    """Open every image below a folder, in the order of `list_images`.

    The first folder of each path is the class, unless a `dataset.json` gives the classes. A single wrapper folder is
    skipped, as downloads unpack: `animals10/raw-img/cat` has the class `cat`. A folder that is divided into train and
    test (or val) gives the split, by default train.

    Raises UserError if a folder cannot be listed (without its class, the others would have other numbers), there is no
    such split, or split folders are mixed with others.
    """
    outer = folder.resolve()
    names, skipped = _scan(outer, recursive=True)
    prefix = _inner_folder([*names, *(name for name, reason in skipped if _may_be_data(name, reason))], split, folder)
    root = outer / prefix
    names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    skipped = [(name.removeprefix(prefix), reason) for name, reason in skipped if name.startswith(prefix)]
    links = {index for index, name in enumerate(names) if _leaves(root, name)}

    def read(index: int) -> bytes:
        try:
            if index not in links and _leaves(root, names[index]):
                raise BrokenFile(CHANGED_LINK)
            if not os.path.isfile(path := root / names[index]):  # a pipe would never end
                raise BrokenFile(NOT_REGULAR)
            with path.open("rb") as file:
                return file.read(MOST_FILE_BYTES + 1)
        except OSError as error:
            raise BrokenFile(error.strerror or str(error)) from error

    shown = [printable(name) for name in names]
    return EncodedSource(
        shown,
        read,
        lambda index: file_state(root / names[index]),
        *classes_of(shown, _manifest(root)),
        [(printable(name), reason) for name, reason in skipped],
    )


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image, of a format that is read or not, and is not hidden."""
    return name.lower().endswith(ENDINGS + UNREAD) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over without a word."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")  # macOS adds the first to archives, a NAS the other


def _scan(root: Path, recursive: bool) -> tuple[list[str], Skipped]:
    """Walk through a folder. Return the images and the skipped files relative to it, with names as on the disk."""
    names: list[str] = []
    skipped: Skipped = []
    seen = {os.path.realpath(root)}  # of folders, so that links cannot lead round in a circle
    waiting = [""]
    while waiting:
        where = waiting.pop()
        try:
            with os.scandir(root / where) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"{error.filename} cannot be read: {error.strerror or error}"
            raise UserError(f"{reason}; make it readable, or move it out of {root}") from error
        siblings = {entry.name for entry in entries}
        below = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            name = os.path.join(where, entry.name)
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                if trouble := _folder_trouble(entry, root, seen) if recursive else SUB_FOLDER:
                    skipped.append((name, trouble))
                else:
                    below.append(name)
            elif is_image(entry.name):
                if trouble := _file_trouble(entry, siblings):
                    skipped.append((name, trouble))
                else:
                    names.append(name)
        waiting += reversed(below)
    return names, skipped


def _folder_trouble(entry: os.DirEntry[str], root: Path, seen: set[str]) -> str | None:
    """Return why a folder is not read; if there is no reason, add it to the folders seen."""
    real = os.path.realpath(entry.path)
    if real in seen:
        return READ_ALREADY
    inside = _is_below(real, os.path.realpath(root))
    if entry.is_symlink() and (inside or any(_is_below(other, real) for other in seen)):
        return READ_ALREADY
    seen.add(real)
    return RUN_FOLDER if is_run(Path(entry.path)) else None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _file_trouble(entry: os.DirEntry[str], siblings: set[str]) -> str | None:
    """Return why a file with the name of an image is not read."""
    if not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
        return NOT_REGULAR if os.path.exists(entry.path) else DEAD_LINK
    if entry.name.lower().endswith(UNREAD):
        return UNREAD_FORMAT
    return OWN_OUTPUT if _is_own_output(entry.name, siblings) else None


def _is_own_output(name: str, siblings: set[str]) -> bool:
    """Whether an earlier command wrote this file, by its name and the files next to it."""
    if name == CONTACT_SHEET:
        return True
    if name == "report.png":
        return "report.csv" in siblings
    stem, _, kind = name.rpartition("_")
    if kind not in ("compare.png", "std.png", "samples.png", "draws.png"):
        return False
    return {f"{stem}.png", f"{stem}_compare.png"} <= siblings


def _may_be_data(name: str, reason: str) -> bool:
    """Whether a skipped file shows that its folder is one of images."""
    return is_image(os.path.basename(name)) and reason != OWN_OUTPUT


def _leaves(root: Path, name: str) -> bool:
    path = root / name
    return path.is_symlink() and not _is_below(os.path.realpath(path), str(root))


def _manifest(root: Path) -> bytes | None:
    try:
        with (root / MANIFEST).open("rb") as file:
            return file.read(MOST_FILE_BYTES + 1)
    except OSError:
        return None


def _inner_folder(names: list[str], split: str | None, folder: Path) -> str:
    """Return the folder that holds the set, as a prefix of the names: "", "raw-img/", "set/train/"."""
    prefix = ""
    while len(tops := _folders(names)) == 1 and all("/" in name for name in names):
        (top,) = tops
        inner = [name.split("/", 1)[1] for name in names]
        if top.lower() in SPLIT_FOLDERS or not _folders(inner):  # one split, or one class
            break
        prefix, names = f"{prefix}{top}/", inner
    below = {top.lower(): top for top in _folders(names)}
    if split is None:
        _refuse_mixture(folder / prefix, below, names)
        chosen = next((below[name] for name in SPLITS["train"] if name in below and below.keys() <= SPLIT_FOLDERS), "")
    else:
        chosen = next((below[name] for name in SPLITS.get(split, (split,)) if name in below), "")
        if not chosen:
            found = ", ".join(sorted(below)[:8]) or "no folders"
            raise UserError(f"{folder / prefix} has no split {split!r}; it holds {found}")
    return f"{prefix}{chosen}/" if chosen else prefix


def _folders(names: Iterable[str]) -> set[str]:
    """Return the first folder of every path that has one."""
    return {name.split("/", 1)[0] for name in names if "/" in name}


def _refuse_mixture(folder: Path, below: dict[str, str], names: list[str]) -> None:
    """Refuse splits beside other folders: they would be read as classes, and test images as training images.

    A folder with the name of a split that holds images and no folders may be a class: cars, buses and a train.
    """
    splits = [name for names in SPLITS.values() for name in names if name in below]  # train first
    others = sorted(below.keys() - SPLIT_FOLDERS)
    deep = {name.split("/", 1)[0].lower() for name in names if name.count("/") > 1}
    if others and (len(splits) > 1 or not deep.isdisjoint(splits)):
        raise UserError(
            f"{folder} holds {_listed(splits)} beside {_listed(others)}: name the split, as in "
            f"{folder}:{splits[0]}, or, if all of them are classes, rename {splits[0]}"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
