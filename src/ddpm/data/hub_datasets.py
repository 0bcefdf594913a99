"""Data sets of the Hugging Face Hub, parquet files and folders of `save_to_disk`, through the `datasets` library.

The source is `hf:user/set/configuration:split?column=value,value&column=value`; only `user/set` is required. Images
are fetched undecoded and decoded by `ddpm.data.images`. Code in a repository is never run.
"""

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import numpy as np

from ddpm.common.errors import RunStopped, UserError, first_line, nearest, require
from ddpm.data.images import MOST_FILE_BYTES, BrokenFile
from ddpm.data.stored import EncodedSource, file_state
from ddpm.data.stream import Encoded

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
LABEL_COLUMNS = ("label", "labels", "class", "cls")
SAVED_DICT, SAVED = "dataset_dict.json", ("dataset_info.json", "state.json")  # files of `save_to_disk`


@dataclass(frozen=True)
class HubName:
    """The parts of a source `hf:…`. `filters` maps a column to the values that are wanted."""

    path: str
    configuration: str | None
    split: str | None
    filters: dict[str, list[str]]


def parse_hub(source: str) -> HubName:
    """Split `hf:user/set/configuration:split?column=value,value` into its parts.

    Raises UserError if it has another form, or a local path in it does not exist.
    """
    name, _, query = source.removeprefix("hf:").partition("?")
    name, _, split = name.partition(":")
    filters = {}
    for part in filter(None, query.split("&")):
        column, equals, values = part.partition("=")
        if not equals or not column or not values:
            raise UserError(f"{source}: a row filter reads ?column=value,value, not ?{query}")
        filters[unquote(column)] = [unquote(value) for value in values.split(",")]
    local, parts = name.startswith(("/", ".")), name.split("/")
    if not name or (local and not Path(name).exists()):
        raise UserError(f"{source} names no data set; write hf:user/set")
    if local or len(parts) < 3:
        path, configuration = name, None
    else:
        path, configuration = "/".join(parts[:2]), "/".join(parts[2:])
    return HubName(path, configuration, split or None, filters)


def open_hub(source: str) -> EncodedSource:
    """Open a data set of the Hub, which is fetched once into the library's cache, or a local folder of one.

    Raises UserError if there is no such data set, split, column or value, or it has no images.
    """
    hub = parse_hub(source)
    if is_saved(Path(hub.path)):
        return open_saved(Path(hub.path), hub.split, hub.filters)
    loaded = _load(source, hub.path, hub.configuration, split=hub.split or "train")
    return _records(source, loaded, hub.filters, loaded._fingerprint)


def open_parquet(paths: list[Path]) -> EncodedSource:
    """Open local parquet files as one data set. Raises UserError if they cannot be read or have no images."""
    loaded = _load(str(paths[0]), "parquet", data_files=_named(paths), split="train")
    states = hashlib.blake2b(" ".join(map(file_state, paths)).encode(), digest_size=16)
    return _records(str(paths[0]), loaded, {}, states.hexdigest())


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (folder / SAVED_DICT).is_file() or all((folder / name).is_file() for name in SAVED)


def open_saved(folder: Path, split: str | None, filters: dict[str, list[str]] | None = None) -> EncodedSource:
    """Open a folder that `save_to_disk` wrote. Of several splits, the default is train.

    Raises UserError if it cannot be read, has no such split, or has no images.
    """
    divided = (folder / SAVED_DICT).is_file()
    try:
        loaded = _datasets().load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds of errors on damaged files
        raise UserError(f"{folder} cannot be opened through the datasets library: {first_line(error)}") from error
    if divided:
        split = next(iter(loaded)) if split is None and len(loaded) == 1 else split or "train"
        if split not in loaded:
            raise UserError(f"{folder} has no split {split!r}: use {' or '.join(f':{name}' for name in loaded)}")
        loaded = loaded[split]
    elif split not in (None, "train"):
        raise UserError(f"{folder} has no splits: leave out :{split}, or name the folder that holds it")
    states = [file_state(path) for path in sorted(folder.rglob("*.arrow"))]
    state = hashlib.blake2b(" ".join([str(split), *states]).encode(), digest_size=16).hexdigest()
    return _records(str(folder), loaded, filters or {}, state, follow_paths=False)


def stream_hub(source: str) -> "HubShards":
    """Open a data set of the Hub as a stream: nothing is kept on the disk. Raises UserError as `open_hub`."""
    hub = parse_hub(source)
    loaded = _load(source, hub.path, hub.configuration, split=hub.split or "train", streaming=True)
    return HubShards(source, Path(hub.path).name, loaded, hub.filters)


def stream_parquet(paths: list[Path]) -> "HubShards":
    """Open local parquet files as a stream; each file is a shard."""
    loaded = _load(str(paths[0]), "parquet", data_files=_named(paths), split="train", streaming=True)
    return HubShards(str(paths[0]), paths[0].name, loaded, {})


class HubShards:
    """A streamed data set of `datasets`, shard by shard. `title` begins the names of the shards."""

    def __init__(self, source: str, title: str, loaded: Any, filters: dict[str, list[str]]):
        features = loaded.features or loaded._resolve_features().features
        self.columns = Columns(source, features, filters, follow_paths=_found_by_library(loaded))
        self.loaded = self.columns.undecoded(loaded)
        self.class_names = self.columns.class_names
        self.names = [f"{title} shard {number}" for number in range(self.loaded.num_shards)]
        split = (loaded.info.splits or {}).get(str(loaded.split)) if not filters else None
        self.count = split.num_examples if split is not None and split.num_examples else None

    def rows(self, shard: int, start: int, skip: Callable[[str, str], None]) -> Iterator[Encoded]:
        part = self.loaded.shard(num_shards=len(self.names), index=shard)
        try:
            for number, row in enumerate(part.skip(start) if start else part, start):
                if not self.columns.wanted(row):
                    continue
                name = f"{self.names[shard]} row {number}"
                try:
                    yield Encoded(name, self.columns.data(row), self.columns.label(row), number + 1)
                except BrokenFile as error:
                    skip(name, str(error))
        except Exception as error:  # the library and its network layers raise many kinds of errors
            raise RunStopped(f"{self.columns.source} broke off in {self.names[shard]}: {first_line(error)}") from error


class Columns:
    """The columns of the image and its class (`image`, `label_column`), and the rows that are wanted.

    Args:
        source: for messages.
        features: of the data set.
        filters: column -> the values that are wanted.
        follow_paths: read images from paths in the image column.

    `class_names` is None if only the rows tell. Raises UserError if there is no column of images, or no such column or
    value as a filter names.
    """

    def __init__(self, source: str, features: Any, filters: dict[str, list[str]], *, follow_paths: bool):
        self.source, self.features, self.follow_paths = source, features, follow_paths
        datasets = _datasets()
        self.image = self._image_column(datasets)
        labelled = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        chosen_by = [name for name in labelled if len(filters.get(name, [])) > 1]  # several of its classes are wanted
        self.label_column = next((name for name in [*chosen_by, *labelled, *LABEL_COLUMNS] if name in features), None)
        self.filters = {column: self._values(column, values) for column, values in filters.items()}
        names = self._listed(self.label_column)
        chosen = self.filters.get(self.label_column) if self.label_column else None
        self.class_names = [name for name in names if name in chosen] if names and chosen else chosen or names
        self._number = {name: number for number, name in enumerate(self.class_names or [])}

    def undecoded(self, loaded: Any) -> Any:
        """Return the data set with its images as they are stored."""
        datasets = _datasets()
        if isinstance(self.features[self.image], datasets.Image):
            return loaded.cast_column(self.image, datasets.Image(decode=False))
        return loaded

    def wanted(self, row: dict[str, Any]) -> bool:
        """Whether a row passes the filters."""
        return all(self.key(column, row[column]) in values for column, values in self.filters.items())

    def data(self, row: dict[str, Any]) -> bytes:
        """Return the encoded image in a row. Raises BrokenFile."""
        cell = row[self.image]
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            return cell["bytes"]
        if isinstance(cell, dict) and cell.get("path") and self.follow_paths:
            return _fetch(cell["path"])
        raise BrokenFile("the row holds no image")

    def label(self, row: dict[str, Any]) -> int | None:
        """Return the class of a row, 0 … number of classes - 1, or None."""
        if self.label_column is None:
            return None
        return self._number.get(self.key(self.label_column, row[self.label_column]))

    def key(self, column: str, value: Any) -> str:
        """Return a cell as filters and class names write it: the name of the class, if the column has names."""
        names = self._listed(column)
        return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else str(value)

    def _listed(self, column: str | None) -> list[str] | None:
        return getattr(self.features.get(column), "names", None) if column else None

    def _values(self, column: str, values: list[str]) -> list[str]:
        if column not in self.features:
            raise UserError(f"{self.source} has no column {column!r}; {nearest(column, self.features)}")
        names = self._listed(column)
        if names:
            values = [names[int(v)] if v not in names and v.isdigit() and int(v) < len(names) else v for v in values]
            for value in values:
                if value not in names:
                    raise UserError(f"{self.source}: {column} is never {value!r}; {nearest(value, names)}")
        return values

    def _image_column(self, datasets: ModuleType) -> str:
        for name, feature in self.features.items():
            if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
                return name
        for name in IMAGE_COLUMNS:
            if getattr(self.features.get(name), "dtype", None) in ("binary", "large_binary"):
                return name
        raise UserError(f"{self.source} has no column of images; it has {', '.join(self.features)}")


def _found_by_library(loaded: Any) -> bool:
    """Whether the library itself found the paths in the rows. Paths written in a data file are not followed."""
    return loaded.info.builder_name == "imagefolder"


def _records(
    source: str, loaded: Any, filters: dict[str, list[str]], state: str, *, follow_paths: bool | None = None
) -> EncodedSource:
    """Return the rows that pass the filters. `state` is text that changes with any row."""
    follow_paths = _found_by_library(loaded) if follow_paths is None else follow_paths
    columns = Columns(source, loaded.features, filters, follow_paths=follow_paths)
    kept = np.ones(len(loaded), bool)
    for column, values in columns.filters.items():
        kept &= np.array([columns.key(column, value) in values for value in loaded[column]], bool)
    if filters and not kept.any():
        wanted = " and ".join(f"{column} {' or '.join(values)}" for column, values in filters.items())
        raise UserError(f"{source}: no row has {wanted}")
    rows = np.flatnonzero(kept)
    labels, class_names = None, columns.class_names
    if columns.label_column is not None:
        keys = [columns.key(columns.label_column, value) for value in loaded[columns.label_column]]
        keys = [keys[row] for row in rows]
        class_names = class_names or sorted(set(keys), key=_numbers_first)
        number = {name: index for index, name in enumerate(class_names)}
        labels = np.array([number.get(key, -1) for key in keys], np.int64)
    images = columns.undecoded(loaded.select_columns([columns.image]))

    def read(index: int) -> bytes:
        return columns.data(images[int(rows[index])])

    return EncodedSource(_RowNames(rows), read, lambda index: state, labels, class_names)


class _RowNames(Sequence[str]):
    """The names "row 17", without a string in memory for each of millions of rows."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return f"row {self.rows[index]}"


def _load(source: str, path: str, configuration: str | None = None, **options) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(path, configuration, **options)
    except Exception as error:  # the library and its network layers raise many kinds of errors
        raise UserError(f"{source} cannot be opened through the datasets library: {first_line(error)}") from error


def _datasets() -> ModuleType:
    return require("datasets", "data")


def _fetch(path: str) -> bytes:
    try:
        with require("fsspec", "data").open(path, "rb") as file:
            return file.read(MOST_FILE_BYTES + 1)
    except Exception as error:  # local, http and archive layers raise many kinds of errors
        raise BrokenFile(str(error) or type(error).__name__) from error


def _named(paths: list[Path]) -> list[str]:
    """Return the paths as patterns, as the library reads them: `flowers [2024].parquet` must match itself."""
    return [glob.escape(str(path)) for path in paths]


def _numbers_first(key: str) -> tuple[bool, int, str]:
    number = key.lstrip("-").isdigit()
    return (not number, int(key) if number else 0, key)
