"""From what the user writes, a SOURCE, to the set it names.

A name (`digits` is built in; others are looked for under $DDPM_DATA), or a path; `:test` at the end names a split.
"""

import difflib
import os
from pathlib import Path

from ddpm.data.arrays import Arrays
from ddpm.data.cifar import find_cifar_binary, open_cifar_binary
from ddpm.data.config import DataConfig
from ddpm.data.dataset import ImageDataset, from_arrays, from_records
from ddpm.data.idx import find_idx, open_idx
from ddpm.data.npz import open_npz
from ddpm.data.records import Records, open_folder
from ddpm.errors import UserError

DIGITS = Path(__file__).parent.parent / "assets" / "digits.npz"
DIGIT_NAMES = [str(digit) for digit in range(10)]
FASHION_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FOLDERS = {
    "cifar10": ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar100", "cifar-100-binary", "cifar-100-python"),
}
CLASS_NAMES = {"mnist": DIGIT_NAMES, "fashion_mnist": FASHION_NAMES}
KNOWN = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")


def open_dataset(source: str | DataConfig, **options) -> ImageDataset:
    """Open a SOURCE, or the `data` section of a configuration.

    Args:
        source: a name, a path, or a DataConfig that says everything.
        options: the other fields of DataConfig: image_size, channels, labels, fit, background.

    Raises UserError for anything missing, empty or unreadable as a whole; single broken files are in `.report`.
    """
    config = source if isinstance(source, DataConfig) else DataConfig(source=source, **options)
    found = find_source(config.source)
    return from_arrays(found, config) if isinstance(found, Arrays) else from_records(found, config)


def find_source(source: str) -> Arrays | Records:
    """What a SOURCE names, as it is stored."""
    name, split = split_of(source)
    if name == "digits":
        if split not in (None, "train"):
            raise UserError("digits has only a train split; mnist:test holds digits that are not among them")
        arrays = open_npz(DIGITS)
        return Arrays(arrays.images, arrays.labels, DIGIT_NAMES)
    folder = _under_data(name)
    if folder is not None:
        return open_path(folder, split, CLASS_NAMES.get(name))
    path = Path(name).expanduser()
    if path.exists():
        return open_path(path, split)
    raise UserError(_not_found(name))


def open_path(path: Path, split: str | None = None, class_names: list[str] | None = None) -> Arrays | Records:
    """A file or folder in any of the layouts that are read."""
    try:
        if path.is_dir():
            return _open_directory(path, split, class_names)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    name = path.name.removesuffix(".gz")
    if name.endswith(".npz"):
        return open_npz(path)
    if "-ubyte" in name or name.endswith(".idx"):
        return open_idx(path, class_names)
    raise UserError(f"{path} is not a folder of images, nor IDX, CIFAR batches, .npz, .zip or .tar")


def split_of(source: str) -> tuple[str, str | None]:
    """`mnist:test` is ("mnist", "test"); a path that exists as it is written is left whole."""
    head, colon, tail = source.rpartition(":")
    if colon and head and tail.isalnum() and not Path(source).exists():
        return head, tail
    return source, None


def _open_directory(folder: Path, split: str | None, class_names: list[str] | None) -> Arrays | Records:
    images = find_idx(folder, split or "train")
    if images is not None:
        return open_idx(images, class_names)
    binary = find_cifar_binary(folder, split or "train")
    if binary is not None:
        return open_cifar_binary(*binary)
    return open_folder(folder, split)


def _under_data(name: str) -> Path | None:
    data = os.environ.get("DDPM_DATA")
    if not data or Path(name).name != name:
        return None
    candidates = (Path(data, folder) for folder in FOLDERS.get(name, (name,)))
    return next((path for path in candidates if path.exists()), None)


def _not_found(name: str) -> str:
    where = (
        f"nothing by that name under DDPM_DATA={os.environ['DDPM_DATA']}"
        if "DDPM_DATA" in os.environ
        else "DDPM_DATA is not set"
    )
    near = difflib.get_close_matches(name, KNOWN, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no data source {name!r}: no such path, and {where}{hint}"
