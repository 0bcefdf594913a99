"""Restore a file or a folder: in batches, and where it was stopped it goes on."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddpm.data.decode import ENDINGS
from ddpm.errors import UserError
from ddpm.files import write_whole
from ddpm.model import Model
from ddpm.restoration.items import Item, Reader, Settings, file_digest
from ddpm.restoration.posterior import Restored, restore
from ddpm.restoration.report import Row, read_report, row_of, write_images, write_picture, write_report
from ddpm.samplers.step import Callback, Step
from ddpm.viewing.files import check_target

REPORT, PICTURE, SETTINGS = "report.csv", "report.png", "settings.json"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def restore_file(
    model: Model, source: Path, out: Path, settings: Settings, *, overwrite: bool = False
) -> tuple[Item, Row]:
    """Restore one picture to `out`, a .png; more pictures stand beside it, see `report.write_images`."""
    check_target(out, (".png",), overwrite=overwrite)
    item = Reader(model, settings).read(source, source.stem, out.with_suffix(""))
    total = model.process.schedule.timesteps
    with tqdm(total=total, desc="restoring", bar_format=BAR, delay=2, leave=False, disable=None) as bar:

        def show(step: Step) -> None:  # how far down the timesteps x_t is: jumps go back up
            bar.update(total - 1 - round(step.t_prev) - bar.n)

        (row,) = restore_items(model, [item], settings, show)
    return item, row


def restore_folder(model: Model, source: Path, out: Path, settings: Settings, *, overwrite: bool = False) -> list[Row]:
    """Restore every picture in `source`, sub-folders included; returns the rows of the report.

    What an earlier, interrupted call with the same settings has done of the same pictures is kept. Pictures that cannot
    be read or do not fit are named in the report, in the column `error`, and left out. What lies below `out` is a
    result, and never restored again.
    """
    found = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in ENDINGS]
    inputs = [path for path in found if not path.resolve().is_relative_to(out.resolve())]
    if found and not inputs:
        raise UserError(f"all pictures in {source} lie below {out}, where results go: give another --out")
    if not inputs:
        raise UserError(f"no pictures in {source}: looked for {', '.join(ENDINGS)}")
    paths = {image_name(path, source): path for path in inputs}
    digests = {name: file_digest(path) for name, path in paths.items()}
    prepare(out, {"weights": model.weights_hash, **settings.as_json()}, overwrite)
    rows = {
        row["name"]: row
        for row in read_report(out / REPORT)
        if is_done(row, out) and row.get("digest") == digests.get(row["name"])
    }
    todo = {name: path for name, path in paths.items() if name not in rows}
    with tqdm(total=len(todo), unit="image", desc="restoring", disable=len(todo) < 2) as bar:
        for items, failures in batches(model, todo, out, settings):
            for row in [*restore_items(model, items, settings), *failures]:
                rows[row["name"]] = {**row, "digest": digests[row["name"]]}
                bar.update()
            write_report(out / REPORT, [rows[name] for name in paths if name in rows])
    finished = [rows[name] for name in paths]
    if all(row["error"] for row in finished):
        raise UserError(f"no picture in {source} could be restored; the first: {finished[0]['error']}")
    write_picture(out / PICTURE, [out / row["name"] for row in finished if not row["error"]])
    return finished


def batches(
    model: Model, paths: dict[str, Path], out: Path, settings: Settings
) -> Iterator[tuple[list[Item], list[Row]]]:
    """The pictures in runs that share operator and σ, each with the rows of those that failed on the way."""
    size = settings.batch_size or model.default_batch_size
    reader = Reader(model, settings)
    items: list[Item] = []
    failures: list[Row] = []
    for name, path in paths.items():
        try:
            item = reader.read(path, name, out / name)
        except UserError as error:
            failures.append({"name": name, "error": str(error)})
            continue
        differs = items and (item.operator is not items[0].operator or item.sigma != items[0].sigma)
        if differs or len(items) * settings.samples >= size:
            yield items, failures
            items, failures = [], []
        items.append(item)
    yield items, failures


def restore_items(model: Model, items: list[Item], settings: Settings, callback: Callback | None = None) -> list[Row]:
    """Restore images that share operator and σ, write their pictures and return their rows."""
    if not items:
        return []
    start = time.monotonic()
    restored = restore(
        model,
        torch.stack([item.y for item in items]),
        items[0].operator,
        method=settings.method,
        noise=items[0].sigma,
        samples=settings.samples,
        steps=settings.steps,
        labels=settings.labels,
        guidance=settings.guidance,
        seed=settings.seed,
        names=[item.name for item in items],
        batch_size=settings.batch_size,
        precision=settings.precision,
        callback=callback,
        **settings.options,
    )
    seconds = (time.monotonic() - start) / len(items)
    rows = []
    for item, samples in zip(items, restored.samples, strict=True):
        one = Restored(samples[None])
        write_images(item, one)
        rows.append(row_of(item, one, seconds))
    return rows


def image_name(path: Path, source: Path) -> str:
    """The picture's path in the folder without its ending, which stays where another picture has the same name."""
    relative = path.relative_to(source)
    twins = [path.with_suffix(ending) for ending in ENDINGS if path.with_suffix(ending).exists()]
    return str(relative if len(twins) > 1 else relative.with_suffix(""))


def is_done(row: Row, out: Path) -> bool:
    """Whether an earlier call restored this picture."""
    return not row["error"] and (out / f"{row['name']}.png").exists()


def prepare(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder, or see that what is there came from the same settings."""
    note, text = out / SETTINGS, json.dumps(settings, indent=1, sort_keys=True, default=str)
    if note.exists() and note.read_text() == text:
        return
    if out.is_file() or (out.exists() and any(out.iterdir()) and not overwrite):
        raise UserError(f"{out} exists and holds something else: give another --out, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).unlink(missing_ok=True)
    write_whole(note, text.encode())
