"""Array files as data sets: IDX (MNIST), .npz, and CIFAR's binary and Python batches."""

import gzip
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.common.errors import UserError
from ddpm.data.datasets import ArraySource
from ddpm.data.images import check_array, read_bounded

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


def open_idx(images_path: Path, class_names: list[str] | None = None) -> ArraySource:
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
    return ArraySource(images, labels, class_names)


def _labels_path(images_path: Path) -> Path | None:
    stem = images_path.name.removesuffix(".gz")
    name = stem.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    candidates = (images_path.with_name(name + ending) for ending in ("", ".gz"))
    return None if name == stem else next((path for path in candidates if path.is_file()), None)


MOST_HEADER_BYTES = 10_000


def open_npz(path: Path) -> ArraySource:
    """Read `arr_0` and `arr_1`; nothing in the file is ever unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "arr_0.npy" not in names:
                held = ", ".join(name.removesuffix(".npy") for name in names[:5]) or "nothing"
                raise UserError(f"{path} holds {held}; the images should be in arr_0, uint8 N,H,W,C")
            images = _read_member(path, archive, "arr_0.npy")
            labels = _read_member(path, archive, "arr_1.npy") if "arr_1.npy" in names else None
    except UserError:
        raise
    except Exception as error:  # zipfile and numpy raise half a dozen kinds on a damaged archive
        raise UserError(f"{path} is not a readable .npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(f"{path}: arr_0 is {images.dtype} with {images.ndim} dimensions; it should be uint8 N,H,W,C")
    if images.ndim == 3:
        images = images[..., None]
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(images),)):
        raise UserError(f"{path}: arr_1 should hold one integer label for each of {len(images):,} images")
    return ArraySource(images, None if labels is None else labels.astype(np.int64))


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, after its header, its size in the archive and what deflate can do have been found to agree."""
    info = archive.getinfo(name)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MOST_HEADER_BYTES)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=MOST_HEADER_BYTES)
        else:
            raise UserError(f"{path}: {name} is of .npy version {version}; 1.0 and 2.0 are read")
        if dtype.kind not in "iufb":
            raise UserError(f"{path}: {name} holds {dtype}, not numbers")
        size = check_array(path, shape, dtype.itemsize, min(info.compress_size, path.stat().st_size), zipped=True)
        data = read_bounded(file, size + 1)
    if len(data) != size:
        raise UserError(f"{path}: {name} does not hold the {size:,} bytes that its header announces")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


MOST_INSTRUCTIONS = 3_000_000  # CIFAR-100's training file, the longest, has fewer than 400,000
ARRAY = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
ENCODE = {"_codecs encode"}
DTYPE = {"numpy dtype"}


class _Mark:
    """Where a tuple, list or dictionary begins on the stack."""


class _Named:
    """A global the pickle names; it stays a name."""

    def __init__(self, name: str):
        self.name = name


class _Made:
    """What the pickle would have a global build: its name, its arguments and, later, its state."""

    def __init__(self, name: str, arguments: tuple):
        self.name, self.arguments, self.state = name, arguments, None


def read_batch(data: bytes, path) -> dict[bytes, Any]:
    """The dictionary in a pickled CIFAR batch: numbers, bytes, lists, and uint8 arrays. Strings come back as bytes.

    Raises UserError for a file that is no such pickle, or wants anything beyond plain data.
    """
    try:
        found = _follow(data)
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
        return {key: _array(value) if isinstance(value, _Made) else value for key, value in found.items()}
    except Exception as error:
        raise UserError(f"{path} is not a CIFAR batch of plain data: {error}") from error


def _follow(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def from_mark() -> list[Any]:
        place = next(index for index in range(len(stack) - 1, -1, -1) if isinstance(stack[index], _Mark))
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def call(name: Any, arguments: Any) -> Any:
        if isinstance(name, _Named) and isinstance(arguments, tuple):
            if name.name in ENCODE:
                return arguments[0]  # how Python 3 writes bytes in old protocols; strings are bytes here anyway
            if name.name in ARRAY | DTYPE:
                return _Made(name.name, arguments)
        raise ValueError(f"it would call {getattr(name, 'name', 'something')}")

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > MOST_INSTRUCTIONS:
            raise ValueError("it is far longer than any CIFAR batch")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_Mark())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument if isinstance(argument, bytes) else argument.encode("latin-1"))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(from_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = from_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], key, value)
            case "SETITEMS":
                items = from_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(stack[-1], key, value)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Named(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Named(f"{module.decode()} {name.decode()}"))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case other:
                raise ValueError(f"it uses the instruction {other}")
    raise ValueError("it does not end")


def _set(dictionary: Any, key: Any, value: Any) -> None:
    if not isinstance(dictionary, dict) or not isinstance(key, bytes):
        raise ValueError("its keys are not strings")
    dictionary[key] = value


def _array(made: _Made) -> np.ndarray:
    """A pickled uint8 array, from the state numpy would have been given: (version, shape, dtype, fortran, bytes)."""
    if made.name not in ARRAY or not isinstance(made.state, tuple) or len(made.state) != 5:
        raise ValueError("it holds an object that is no array")
    _, shape, dtype, fortran, data = made.state
    if not isinstance(dtype, _Made) or dtype.name not in DTYPE or dtype.arguments[0] not in (b"u1", b"|u1"):
        raise ValueError("its array is not of bytes")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PIXELS = 3 * 32 * 32
MOST_BATCH_BYTES = 2**28  # CIFAR-100's training file has 155 million
# The files of a split, and how many label bytes a row begins with; CIFAR-100 has a coarse label, then the fine one.
BINARY = {"train": {"data_batch_*.bin": 1, "train.bin": 2}, "test": {"test_batch.bin": 1, "test.bin": 2}}
PYTHON = {"train": ["data_batch_[0-9]", "train"], "test": ["test_batch", "test"]}


def open_cifar(folder: Path, split: str) -> ArraySource | None:
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


def _joined(batches: list[tuple[np.ndarray, np.ndarray]], class_names: list[str] | None) -> ArraySource:
    images = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([labels for _, labels in batches]).astype(np.int64)
    return ArraySource(images, labels, class_names or (CIFAR10_NAMES if labels.max() < 10 else None))


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
