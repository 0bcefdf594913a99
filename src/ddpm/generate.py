"""Sample many images to a file or a folder: in batches, on several processes, and resumable after a kill.

Batch b belongs to process b mod P. It is written under a temporary name and renamed when it is complete. So no process
waits for another, and the last one to finish joins the parts. A grid (.png) is small and is simply sampled.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ddpm.common.distributed import is_main, rank, world_size
from ddpm.common.errors import UserError
from ddpm.common.files import atomic_path, atomic_write, folder_lock, refuse_existing, user_path
from ddpm.common.pixels import origin_text, png_text, save_grid, to_uint8
from ddpm.model import Model, SamplingOptions
from ddpm.samplers import Callback

SETTINGS = "settings.json"


def generate(
    model: Model,
    out: str | Path,
    options: SamplingOptions | None = None,
    *,
    num: int,
    overwrite: bool = False,
    columns: int | None = None,
    callback: Callback | None = None,
    **changes: Any,
) -> None:
    """Sample images 0 … num-1 to `out`: a grid (.png), an array (.npz: `arr_0`, uint8, N,H,W,C), or a folder of PNGs.

    An unfinished array or folder with the same options is finished; a finished folder is sampled again if `overwrite`.

    Args:
        options: see `SamplingOptions`; `changes` are fields that replace those of `options`.
        columns: of the grid; default: as square as possible.
        callback: called with a `Step` after every sampling step of every batch.

    Raises UserError if an option is wrong, or if `out` exists with other options and `overwrite` is False.
    """
    if num < 1:
        raise UserError(f"the number of images must be at least 1, not {num}")
    out = user_path(out)
    if out.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(f"cannot write {out.name}: JPEG changes pixels; name a .png, a .npz or a folder")
    options = SamplingOptions.of(options, **changes).resolved(model)
    size = options.batch_size
    assert size is not None
    assert options.steps is not None
    model.compile_if_worthwhile(num, options.steps)
    if out.suffix.lower() == ".png":
        if is_main():
            refuse_existing(out, overwrite)
            save_grid(model.sample(num, options, callback=callback), out, columns=columns, overwrite=overwrite)
        return
    if rank() * size >= num:
        return  # more processes than batches: the others may have finished already
    as_folder = out.suffix.lower() != ".npz"
    parts, ending = (out, ".png") if as_folder else (out.with_name(out.name + ".parts"), ".npy")
    prepare(out, parts, {"num": num, **model.cache_key, **options.as_dict()}, overwrite)
    for indices, images in missing_batches(model, parts, ending, num, options, callback):
        pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
        (write_pngs if as_folder else write_array)(parts, indices, pixels)
    if not as_folder:
        assemble(out, parts, num, size)


def prepare(out: Path, parts: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Create the folder of parts. Whatever is there already must have been made with the same settings."""
    note = parts / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True, default=str)
    with folder_lock(out.parent):
        begun = note.exists() and note.read_text() == text
        occupied = out.exists() and (out.is_file() or any(out.iterdir()))
        if occupied and not (begun and parts == out):
            refuse_existing(out, overwrite)
        finished = parts == out and all(path.exists() for path in batch_files(out, range(settings["num"]), ".png"))
        if begun and not (overwrite and finished):
            return
        parts.mkdir(parents=True, exist_ok=True)
        drawn = [path for path in parts.iterdir() if path.stem.isdigit() and path.suffix in (".png", ".npy")]
        if drawn and not overwrite:
            raise UserError(
                f"{parts} holds unfinished images with other options: repeat those, give another --out, or --overwrite"
            )
        for path in drawn:  # an old batch would be taken for a finished one
            path.unlink()
        atomic_write(note, text.encode())


def missing_batches(
    model: Model, parts: Path, ending: str, num: int, options: SamplingOptions, callback: Callback | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Sample this process's batches that are not in `parts` yet; the first process shows a progress bar."""
    size = options.batch_size
    assert size is not None
    mine = [range(start, min(start + size, num)) for start in range(rank() * size, num, world_size() * size)]
    todo = [batch for batch in mine if not all(path.exists() for path in batch_files(parts, batch, ending))]
    for batch in tqdm(todo, unit="batch", desc="sampling", disable=not is_main() or len(todo) < 2):
        yield from model.sample_batches(batch, options, callback=callback)


def batch_files(parts: Path, batch: range, ending: str) -> list[Path]:
    """Return the files of a batch: one PNG per image, or one array named after its last image."""
    return [parts / f"{index:06d}{ending}" for index in (batch if ending == ".png" else batch[-1:])]


def write_pngs(folder: Path, indices: list[int], pixels: np.ndarray) -> None:
    """Write one PNG per image, named after its index."""
    for index, image in zip(indices, pixels, strict=True):
        buffer = io.BytesIO()
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        picture.save(buffer, format="png", pnginfo=png_text(index=index))
        atomic_write(folder / f"{index:06d}.png", buffer.getvalue())


def write_array(parts: Path, indices: list[int], pixels: np.ndarray) -> None:
    """Write a batch as one .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    (path,) = batch_files(parts, range(indices[0], indices[-1] + 1), ".npy")
    atomic_write(path, buffer.getvalue())


def assemble(out: Path, parts: Path, num: int, size: int) -> None:
    """Join the parts if all are there; otherwise a process that finishes later does it."""
    with folder_lock(out.parent):
        batches = [range(start, min(start + size, num)) for start in range(0, num, size)]
        files = [path for batch in batches for path in batch_files(parts, batch, ".npy")]
        if not all(file.exists() for file in files):
            return
        join_arrays(files, num, out)
        shutil.rmtree(parts)


def join_arrays(files: list[Path], num: int, out: Path) -> None:
    """Join the files' `num` images as `arr_0` of an .npz, one file at a time, since memory may not hold all."""
    shape = (num, *np.load(files[0], mmap_mode="r").shape[1:])
    with (
        atomic_path(out) as beside,
        zipfile.ZipFile(beside, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as entry,
    ):
        np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for file in files:
            entry.write(np.load(file).tobytes())
        archive.comment = origin_text().encode()
