""".npz sets in guided-diffusion's convention: `arr_0` is uint8 N,H,W,C and `arr_1`, if there, the labels."""

import zipfile
from pathlib import Path

import numpy as np

from ddpm.data.limits import check_array, read_bounded
from ddpm.data.stored import Arrays
from ddpm.errors import UserError

MOST_HEADER_BYTES = 10_000


def open_npz(path: Path) -> Arrays:
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
    return Arrays(images, None if labels is None else labels.astype(np.int64))


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
