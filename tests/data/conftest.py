"""Small image files and archives, made here by Pillow, numpy and the standard library, never by the code under test."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    """Tests see only what they make; real data sets are asked for by name in the tests that want them."""
    monkeypatch.delenv("DDPM_DATA", raising=False)


@pytest.fixture
def pixels():
    """pixels(seed, height, width, channels) -> uint8 array, random."""

    def make(seed: int = 0, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
        shape = (height, width) if channels == 1 else (height, width, channels)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def encode():
    """encode(array or Pillow image, format) -> bytes of the file."""

    def make(image, format: str = "PNG", **options) -> bytes:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def png():
    """png(width, height, depth, colour, rows) -> a PNG written chunk by chunk, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    return make


@pytest.fixture
def image_folder(tmp_path, pixels):
    """image_folder(names) -> a folder with a PNG at each name, image i drawn from seed i."""

    def make(names: list[str], where: str = "set", **shape) -> Path:
        folder = tmp_path / where
        for seed, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(seed, **shape)).save(folder / name)
        return folder

    return make


@pytest.fixture
def write_tar():
    """write_tar(path, {name: bytes})."""

    def make(path: Path, members: dict[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture
def write_idx():
    """write_idx(path, array): the IDX format, from its description."""

    def make(path: Path, array: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())
        return path

    return make


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
    """What the datasets library keeps goes where the test's other files are."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    datasets.disable_progress_bars()
