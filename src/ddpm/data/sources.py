"""Find the data set that a SOURCE names.

A SOURCE is a name (`digits` is built in; others are searched for under $DDPM_DATA, then on the Hub), `hf:user/set`, or
a path. `:test` at the end selects a split.
"""

import os
import re
from pathlib import Path

from ddpm.common.errors import UserError, nearest
from ddpm.common.files import user_path
from ddpm.data.archives import open_tar, open_zip, shard_paths
from ddpm.data.arrays import find_idx, open_cifar, open_idx, open_npz
from ddpm.data.config import DataConfig, checked_config
from ddpm.data.datasets import ImageDataset, make_ready
from ddpm.data.folder import list_images, open_folder
from ddpm.data.hub_datasets import is_saved, open_hub, open_parquet, open_saved, stream_hub, stream_parquet
from ddpm.data.stored import ArraySource, ImageSource
from ddpm.data.stream import Shards, StreamDataset, TarShards

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
SPLIT_NAME = re.compile("(train|test|validation|valid|val|dev)(?![a-z])")  # at the start of a file name
CLASS_NAMES = {"mnist": DIGIT_NAMES, "fashion_mnist": FASHION_NAMES}
FOLDERS = {  # under $DDPM_DATA, if it is not the name itself
    "mnist": ("mnist", "MNIST"),
    "fashion_mnist": ("fashion_mnist", "FashionMNIST"),
    "cifar10": ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar100", "cifar-100-binary", "cifar-100-python"),
}
ON_THE_HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}


def open_dataset(source: str | DataConfig, **options) -> ImageDataset:
    """Open a SOURCE, or the `data` section of a configuration.

    Args:
        source: a name, `hf:user/set`, a path, or a whole DataConfig.
        options: the other fields of DataConfig: image_size, channels, labels, fit, background, streaming.

    Raises UserError if the source is missing, empty or cannot be read. Single broken files are listed in `.report`.
    """
    config = source if isinstance(source, DataConfig) else checked_config(source, **options)
    if config.streaming:
        return StreamDataset(find_shards(config.source), config)
    return make_ready(find_stored(config.source), config)


def find_stored(source: str) -> ImageSource:
    """Find the images of a SOURCE as they are stored. Raises UserError as `open_dataset`."""
    if source.startswith("hf:"):
        return open_hub(source)
    name, split = split_of(source)
    if name == "digits":
        if split not in (None, "train"):
            raise UserError("digits has only a train split; mnist:test holds other digits")
        arrays = open_npz(DIGITS)
        return ArraySource(arrays.images, arrays.labels, DIGIT_NAMES)
    try:
        if path := _place(name):
            return _open_path(path, split, CLASS_NAMES.get(name))
        if shards := _shards_of(name, ".tar"):
            return open_tar(_of_split(shards, name, split))
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    return open_hub(_hub_source(name, split))


def find_shards(source: str) -> Shards:
    """Find the shards of a SOURCE for streaming: a data set of the Hub, parquet files or tar shards.

    Raises UserError if there are none, or they cannot be read.
    """
    if source.startswith("hf:"):
        return stream_hub(source)
    name, split = split_of(source)
    place = str(_place(name) or name)
    if paths := _shards_of(place, ".tar"):
        return TarShards(_of_split(paths, name, split))
    if paths := _shards_of(place, ".parquet"):
        return stream_parquet(_of_split(paths, name, split))
    if _place(name) or name == "digits":
        raise UserError(
            f"{source} is not streamed: only tar shards, parquet files and hf: are; set --data.streaming false"
        )
    return stream_hub(_hub_source(name, split))


def split_of(source: str) -> tuple[str, str | None]:
    """Split `mnist:test` into ("mnist", "test"). A path that exists as it is written is not split."""
    if "\0" in source:
        raise UserError(f"{source!r} is not a data source: it holds a null byte")
    head, colon, tail = source.rpartition(":")
    if colon and head and tail.isidentifier() and not user_path(source).exists():
        return head, tail
    return source, None


def _place(name: str) -> Path | None:
    """Return where a name or path is on this machine, or None."""
    try:
        if (data := os.environ.get("DDPM_DATA")) and Path(name).name == name != "..":
            for folder in FOLDERS.get(name, (name,)):
                if (path := user_path(data) / folder).exists():
                    return path
        path = user_path(name)
        return path if path.exists() else None
    except OSError as error:  # the name is too long
        raise UserError(f"{name[:80]!r} is not a data source: {error}") from error


def _open_path(path: Path, split: str | None, class_names: list[str] | None) -> ImageSource:
    if path.is_dir():
        return _open_directory(path, split, class_names)
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder")
    _of_split([path], str(path), split)
    name = path.name.lower()
    if name.endswith(".npz"):
        return open_npz(path)
    if name.endswith(".zip"):
        return open_zip(path)
    if name.endswith(".tar"):
        return open_tar([path])
    if name.endswith(".parquet"):
        return open_parquet([path])
    if "ubyte" in name or name.removesuffix(".gz").endswith(".idx"):
        return open_idx(path, class_names)
    raise UserError(f"{path} is not a folder of images, nor IDX, .npz, .zip, .tar or .parquet")


def _open_directory(folder: Path, split: str | None, class_names: list[str] | None) -> ImageSource:
    """Open a folder by what it holds: MNIST's or CIFAR's files, a saved data set, tar shards, parquet, or images."""
    if images := find_idx(folder, split or "train"):
        return open_idx(images, class_names)
    if arrays := open_cifar(folder, split or "train"):
        return arrays
    if is_saved(folder):
        return open_saved(folder, split)
    if shards := shard_paths(str(folder), ".tar"):
        return open_tar(_of_split(_alone(shards), str(folder), split))
    if files := shard_paths(str(folder), ".parquet"):
        return open_parquet(_of_split(_alone(files), str(folder), split))
    if (folder / "data.mdb").is_file():
        raise UserError(f"{folder} is an LMDB database, which cannot be read: export its images to a folder first")
    return open_folder(folder, split)


def _alone(shards: list[Path]) -> list[Path]:
    """Return the shards of a folder. Refuse if it holds images too: it is not clear which is meant."""
    folder = shards[0].parent
    if list_images(folder)[0]:
        raise UserError(f"{folder} holds images and {shards[0].name}: name that file, or move it away")
    return shards


def _of_split(files: list[Path], name: str, split: str | None) -> list[Path]:
    """Return the files whose names begin with the split (`test-00000.parquet`), by default train.

    If no name begins with a split, return all. Never return files of another split: training images would pass for
    held-out ones, or the other way round.
    """
    divided: dict[str, list[Path]] = {}
    for file in files:
        found = SPLIT_NAME.match(file.name.lower())
        divided.setdefault(found[1] if found else "", []).append(file)
    if len(files) == 1 or set(divided) == {""}:
        if split is not None:
            raise UserError(f"{name} has no splits: leave out :{split}, or name the file that holds it")
        return files
    if "" in divided:
        raise UserError(
            f"{name} mixes files of splits with {divided[''][0].name}, which is of none: give the names of the files"
        )
    if split is None and len(divided) == 1:
        return files
    if (split or "train") not in divided:
        raise UserError(
            f"{name} has no split {split or 'train'!r}: use {' or '.join(f':{found}' for found in divided)}"
        )
    return divided[split or "train"]


def _shards_of(name: str, ending: str) -> list[Path]:
    return shard_paths(name, ending) if name.endswith(ending) or Path(name).is_dir() else []


def _hub_source(name: str, split: str | None) -> str:
    """Return `hf:…` for a known name. Raise UserError with the nearest name for any other."""
    if name in ON_THE_HUB:
        return f"hf:{ON_THE_HUB[name]}:{split or 'train'}"
    if os.sep in name:
        raise UserError(f"there is no file or folder {name}")
    data = os.environ.get("DDPM_DATA")
    where = f"nothing by that name under DDPM_DATA={data}" if data else "DDPM_DATA is not set"
    hint = nearest(name, ["digits", *ON_THE_HUB])
    raise UserError(f"there is no data source {name!r}: no such path, and {where}; {hint}, or give a folder of images")
