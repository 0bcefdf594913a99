"""Array files as data sets: IDX (MNIST), .npz, and CIFAR's binary and Python batches."""

import gzip
import io
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.common.errors import UserError
from ddpm.data.images import check_array, read_bounded
from ddpm.data.stored import ArraySource

UINT8 = 8
PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """Read the array in an IDX file, uint8. An uncompressed file is memory-mapped.

    Raises UserError if the file cannot be read, or its length is not what its header announces.
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
        raise UserError(f"{path} holds {stored - header:,} bytes, but its header announces {size:,}")
    return np.memmap(path, np.uint8, "r", header, shape)


def find_idx(folder: Path, split: str) -> Path | None:
    """Find the file of a split in a folder of MNIST's layout, or in `raw/` in it, where torchvision keeps the files."""
    prefix = PREFIX.get(split, split)
    names = [f"{prefix}-images{separator}idx3-ubyte{ending}" for separator in "-." for ending in ("", ".gz")]
    paths = [place / name for place in (folder, folder / "raw") for name in names]
    return next((path for path in paths if path.is_file()), None)


def open_idx(images_path: Path, class_names: list[str] | None = None) -> ArraySource:
    """Open an IDX file of images (N, H, W) or (N, H, W, C), with the classes if the labels file is in the same folder.

    Raises UserError if the files cannot be read, or do not hold images and one label per image.
    """
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
    """Open an .npz file: images `arr_0`, uint8 (N, H, W, C), and classes `arr_1`, integers (N,), if there are any.

    Nothing in the file is unpickled.

    Raises UserError if the file cannot be read, or holds other arrays.
    """
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
    except Exception as error:  # zipfile and numpy raise many kinds of errors on a damaged archive
        raise UserError(f"{path} is not a readable .npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(f"{path}: arr_0 is {images.dtype} with {images.ndim} dimensions; it should be uint8 N,H,W,C")
    if images.ndim == 3:
        images = images[..., None]
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(images),)):
        raise UserError(f"{path}: arr_1 should hold one integer label for each of {len(images):,} images")
    return ArraySource(images, None if labels is None else labels.astype(np.int64))


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array. Its header is first checked against its size in the archive."""
    info = archive.getinfo(name)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MOST_HEADER_BYTES)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=MOST_HEADER_BYTES)
        else:
            raise UserError(f"{path}: {name} has .npy version {version}; 1.0 and 2.0 can be read")
        if dtype.kind not in "iufb":
            raise UserError(f"{path}: {name} holds {dtype}, not numbers")
        size = check_array(path, shape, dtype.itemsize, min(info.compress_size, path.stat().st_size), zipped=True)
        data = read_bounded(file, size + 1)
    if len(data) != size:
        raise UserError(f"{path}: {name} does not hold the {size:,} bytes that its header announces")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


MOST_INSTRUCTIONS = 3_000_000  # the longest batch, the training file of CIFAR-100, has fewer than 400,000
INSTRUCTIONS = re.compile(
    "PROTO|FRAME|STOP|MARK|NONE|NEW(TRUE|FALSE)|INT|BININT[12]?|LONG1|(SHORT_)?BIN(STRING|UNICODE|BYTES)|"
    "EMPTY_(DICT|LIST|TUPLE)|TUPLE[123]?|APPENDS?|SETITEMS?|(LONG_)?BINPUT|MEMOIZE|(LONG_)?BINGET|"
    "(STACK_)?GLOBAL|REDUCE|BUILD"
)


class _PickledArray:
    """Stands for a numpy array in a pickle. numpy never sees the pickle's data before they are checked."""

    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, data = state  # (version, shape, dtype, column-major, bytes)
        if dtype.code not in (b"u1", b"|u1", "u1", "|u1") or not isinstance(data, bytes):
            raise pickle.UnpicklingError("its array is not of bytes")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _PickledDtype:
    """Stands for a numpy data type in a pickle."""

    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state) -> None:
        """The state holds the byte order, which single bytes do not have."""


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles plain data and uint8 arrays; see "Restricting Globals" in the documentation of `pickle`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a global. Raise UnpicklingError for any but the five that CIFAR batches name."""
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return lambda *_: _PickledArray()
            case "numpy", "ndarray":
                return None  # an argument of _reconstruct
            case "numpy", "dtype":
                return lambda *arguments: _PickledDtype(*arguments)
            case "_codecs", "encode":  # how Python 3 writes bytes in protocol 2
                return lambda text, _: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def read_batch(data: bytes, path) -> dict[bytes, Any]:
    """Return the dictionary in a pickled CIFAR batch: numbers, bytes, lists and uint8 arrays, by keys as bytes.

    No code in the pickle is run. Raises UserError if it holds anything but plain data; `path` is for the message.
    """
    try:
        _check_instructions(data)
        found = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict) or not all(isinstance(key, str | bytes) for key in found):
            raise ValueError("it holds no dictionary of strings")
        return {_as_bytes(key): _plain(value) for key, value in found.items()}
    except Exception as error:  # a damaged pickle raises anything at all
        raise UserError(f"{path} is not a CIFAR batch of plain data: {error}") from error


def _check_instructions(data: bytes) -> None:
    """Refuse pickles that could exhaust memory or time before `_BatchUnpickler` reads them.

    A large memo index makes `pickle` allocate gigabytes. The hash of a tuple of tuples, each of them used twice, takes
    for ever, so no tuple may be used again.
    """
    tuples: set[int] = set()  # memo indices
    memoized, last = 0, ""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        name = instruction.name
        if count > MOST_INSTRUCTIONS:
            raise ValueError("it is far longer than any CIFAR batch")
        if not INSTRUCTIONS.fullmatch(name):
            raise ValueError(f"it uses the instruction {name}")
        if name.endswith("PUT") or name == "MEMOIZE":
            index = memoized if argument is None else argument
            if index > count:
                raise ValueError("its memo has gaps")
            if last.startswith("TUPLE"):
                tuples.add(index)
            memoized += 1
        elif name.endswith("GET") and argument in tuples:
            raise ValueError("it uses a tuple again")
        elif name not in ("PROTO", "FRAME"):
            last = name


def _plain(value: Any) -> Any:
    if isinstance(value, _PickledArray):
        return value.array
    return [_as_bytes(item) for item in value] if isinstance(value, list) else _as_bytes(value)


def _as_bytes(value: Any) -> Any:
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PIXELS = 3 * 32 * 32
MOST_BATCH_BYTES = 2**28  # CIFAR-100's training file has 155 million
# The files of a split, and the number of label bytes in each row. CIFAR-100 has a coarse label, then a fine one.
BINARY = {"train": {"data_batch_*.bin": 1, "train.bin": 2}, "test": {"test_batch.bin": 1, "test.bin": 2}}
PYTHON = {"train": ["data_batch_[0-9]", "train"], "test": ["test_batch", "test"]}


def open_cifar(folder: Path, split: str) -> ArraySource | None:
    """Open the batches of a split in a folder as CIFAR is distributed. Return None if there are none.

    Raises UserError if a batch cannot be read.
    """
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
