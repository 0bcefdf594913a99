"""Draw many images to a file or a folder: in batches, over several processes, and again from where it was killed.

Batch b belongs to process b mod P, and is written beside and renamed when it is done, so what is there is whole and
no process waits for another. Whichever finishes last puts the parts together.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ddpm.common.errors import UserError
from ddpm.common.files import locked, write_whole, written_beside
from ddpm.common.hardware import process_rank
from ddpm.common.pixels import save_grid, to_float, to_uint8
from ddpm.model import Model

SETTINGS = "settings.json"
Batch = tuple[list[int], Tensor]


def generate(
    model: Model, out: Path, *, num: int, overwrite: bool = False, columns: int | None = None, **options: Any
) -> None:
    """Draw images 0 … num-1 to `out`: a grid (.png), an array (.npz: `arr_0`, uint8, N,H,W,C), or a folder of PNGs.

    `options` go to `Model.sample_batches`. What is there is kept: an `out` of other settings, finished or not, is an
    error unless `overwrite`; one of the same settings that was not finished is finished, and a finished folder drawn
    anew with `overwrite`.
    """
    if num < 1:
        raise UserError(f"the number of images must be at least 1, not {num}")
    asked = options.pop("batch_size", None)
    size = model.default_batch_size if asked is None else asked
    as_folder = out.suffix.lower() not in (".png", ".npz")
    if out.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(f"cannot write {out.name}: JPEG changes pixels; name a .png, a .npz or a folder")
    list(
        model.sample_batches([], batch_size=size, **options)
    )  # an option that is wrong shows before anything is touched
    if process_rank()[0] * size >= num:
        return  # there are more processes than batches, and those of the others may be all done
    parts, ending = (out, ".png") if as_folder else (out.with_name(out.name + ".parts"), ".npy")
    settings = {
        "num": num,
        "batch_size": size,
        **model.identity,
        **options,
        "labels": model.resolve_labels(options.get("labels")),
    }
    prepare(out, parts, settings, overwrite)
    model.prepare(num, options.get("steps", 20))
    for indices, images in missing_batches(model, parts, ending, num, size, options):
        pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
        (write_pngs if as_folder else write_array)(parts, indices, pixels)
    if not as_folder:
        assemble(out, parts, num, size, columns)


def prepare(out: Path, parts: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the parts folder, and see that whatever is there already belongs to the same settings."""
    note = parts / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True, default=str)
    with locked(out.parent):
        begun = note.exists() and note.read_text() == text
        occupied = out.exists() and (out.is_file() or any(out.iterdir()))
        if occupied and not overwrite and not (begun and parts == out):
            raise UserError(f"{out} exists: give another --out, or --overwrite")
        finished = parts == out and all(path.exists() for path in batch_files(out, range(settings["num"]), ".png"))
        if begun and not (overwrite and finished):
            return
        parts.mkdir(parents=True, exist_ok=True)
        drawn = [path for path in parts.iterdir() if path.stem.isdigit() and path.suffix in (".png", ".npy")]
        if drawn and not overwrite:
            raise UserError(
                f"{parts} holds unfinished images of other settings: repeat those, give another --out, or --overwrite"
            )
        for path in drawn:  # whoever made it, it would pass for a batch that is done
            path.unlink()
        write_whole(note, text.encode())


def missing_batches(
    model: Model, parts: Path, ending: str, num: int, size: int, options: dict[str, Any]
) -> Iterator[Batch]:
    """Draw this process's batches that are not in `parts` yet, with a progress bar on the first process."""
    rank, processes = process_rank()
    mine = [range(start, min(start + size, num)) for start in range(rank * size, num, processes * size)]
    todo = [batch for batch in mine if not all(path.exists() for path in batch_files(parts, batch, ending))]
    for batch in tqdm(todo, unit="batch", desc="sampling", disable=rank != 0 or len(todo) < 2):
        yield from model.sample_batches(batch, batch_size=size, **options)


def batch_files(parts: Path, batch: range, ending: str) -> list[Path]:
    """What a batch is done with: a PNG an image, or one array named by its last."""
    return [parts / f"{index:06d}{ending}" for index in (batch if ending == ".png" else batch[-1:])]


def write_pngs(folder: Path, indices: list[int], pixels: np.ndarray) -> None:
    """One PNG an image, named by its index."""
    for index, image in zip(indices, pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, format="png")
        write_whole(folder / f"{index:06d}.png", buffer.getvalue())


def write_array(parts: Path, indices: list[int], pixels: np.ndarray) -> None:
    """A batch as one .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    (path,) = batch_files(parts, range(indices[0], indices[-1] + 1), ".npy")
    write_whole(path, buffer.getvalue())


def assemble(out: Path, parts: Path, num: int, size: int, columns: int | None) -> None:
    """Put the parts together once all are there; a process that finds some missing leaves it to a later one."""
    with locked(out.parent):
        batches = [range(start, min(start + size, num)) for start in range(0, num, size)]
        files = [path for batch in batches for path in batch_files(parts, batch, ".npy")]
        if not all(file.exists() for file in files):
            return
        if out.suffix.lower() == ".png":
            pixels = np.concatenate([np.load(file) for file in files])
            images = to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            save_grid(images, out, columns=columns, overwrite=True)
        else:
            join_arrays(files, num, out)
        shutil.rmtree(parts)


def join_arrays(files: list[Path], num: int, out: Path) -> None:
    """The files' `num` images as `arr_0` of an .npz, a file at a time: the memory may not hold all."""
    shape = (num, *np.load(files[0], mmap_mode="r").shape[1:])
    with (
        written_beside(out) as beside,
        zipfile.ZipFile(beside, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as entry,
    ):
        np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for file in files:
            entry.write(np.load(file).tobytes())
