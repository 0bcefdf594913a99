"""Restore a file or a folder: in batches, and where it was stopped it goes on."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ddpm.data.decode import ENDINGS
from ddpm.data.names import picture_names
from ddpm.errors import UserError
from ddpm.files import write_whole
from ddpm.model import Model
from ddpm.restoration.items import Item, Reader, Settings, file_digest
from ddpm.restoration.posterior import Restored, restore
from ddpm.restoration.report import BESIDE, Row, pictures_of, read_report, save_result, write_picture, write_report
from ddpm.samplers.step import Callback, Step
from ddpm.viewing.files import check_target

REPORT, PICTURE, SETTINGS = "report.csv", "report.png", "settings.json"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def restore_file(
    model: Model, source: Path, out: Path, settings: Settings, *, overwrite: bool = False
) -> tuple[Item, Row]:
    """Restore one picture to `out`, a .png; more pictures stand beside it, see `report.write_images`."""
    for path in pictures_of(out, settings.samples):
        check_target(path, (".png",), overwrite=overwrite)
    item = Reader(model, settings).read(source, source.stem, out)
    replaced = pictures_of(out, 2) if overwrite and out.exists() else []
    total = model.process.schedule.timesteps
    with tqdm(total=total, desc="restoring", bar_format=BAR, delay=2, leave=False, disable=None) as bar:

        def show(step: Step) -> None:  # how far down the timesteps x_t is: jumps go back up
            bar.update(total - 1 - round(step.t_prev) - bar.n)

        (result,) = restore_items(model, [item], settings, show)
    row = save_result(*result)
    for path in set(replaced) - {*pictures_of(out, settings.samples), source}:
        path.unlink(missing_ok=True)  # the draws of the earlier result are none of this one's
    return item, row


def restore_folder(model: Model, source: Path, out: Path, settings: Settings, *, overwrite: bool = False) -> list[Row]:
    """Restore every picture in `source`, sub-folders included; returns the rows of the report.

    What an earlier, interrupted call with the same settings has done of the same pictures is kept. Pictures that cannot
    be read or do not fit are named in the report, in the column `error`, and left out; so are those whose result would
    lie where another picture of the report goes. What lies below `out` is a result, and never restored again.
    """
    if settings.labels is not None and len(model.resolve_labels(settings.labels) or []) > 1:
        raise UserError("a folder takes one label: put the pictures of each class in a folder of their own")
    found = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in ENDINGS]
    inputs = [path for path in found if not path.resolve().is_relative_to(out.resolve())]
    if found and not inputs:
        raise UserError(f"all pictures in {source} lie below {out}, where results go: give another --out")
    if not inputs:
        raise UserError(f"no pictures in {source}: looked for {', '.join(ENDINGS)}")
    paths = dict(zip(picture_names([path.relative_to(source) for path in inputs]), inputs, strict=True))
    digests = {name: file_digest(path) for name, path in paths.items()}
    about = {"weights": model.weights_hash, **settings.as_json()}
    note = json.dumps(about, indent=1, sort_keys=True, default=str)
    reserved = {Path(PICTURE).stem, *(name + ending for name in paths for ending in BESIDE)}
    begun = is_begun(out, note, overwrite)
    rows = {
        row["name"]: row
        for row in (read_report(out / REPORT) if begun else [])
        if is_done(row, out) and row.get("digest") == digests.get(row["name"]) and row["name"] not in reserved
    }
    todo = {name: path for name, path in paths.items() if name not in rows}
    with tqdm(total=len(todo), unit="image", desc="restoring", disable=len(todo) < 2) as bar:
        for items, failures in batches(model, todo, reserved, out, settings):
            results = restore_items(model, items, settings)  # what is wrong shows here, before anything is touched
            if results and not begun:
                begin(out, note)
                begun = True
            for row in [*(save_result(*result) for result in results), *failures]:
                rows[row["name"]] = {**row, "digest": digests[row["name"]]}
                bar.update()
            if not all(row["error"] for row in rows.values()):
                write_report(out / REPORT, [rows[name] for name in paths if name in rows])
    finished = [rows[name] for name in paths]
    if all(row["error"] for row in finished):
        raise UserError(f"no picture in {source} could be restored; the first: {finished[0]['error']}")
    write_picture(out / PICTURE, [out / f"{row['name']}.png" for row in finished if not row["error"]])
    return finished


def batches(
    model: Model, paths: dict[str, Path], reserved: set[str], out: Path, settings: Settings
) -> Iterator[tuple[list[Item], list[Row]]]:
    """The pictures in runs that share operator and σ, each with the rows of those that failed on the way.

    reserved: names that no result may have, because other pictures of the report have them.
    """
    size = settings.batch_size or model.default_batch_size
    reader = Reader(model, settings)
    items: list[Item] = []
    failures: list[Row] = []
    for name, path in paths.items():
        try:
            if name in reserved:
                raise UserError(f"its result would replace {name}.png, another picture of the report: rename the input")
            item = reader.read(path, name, out / f"{name}.png")
        except UserError as error:
            failures.append({"name": name, "error": str(error)})
            continue
        differs = items and (item.operator is not items[0].operator or item.sigma != items[0].sigma)
        if differs or len(items) * settings.samples >= size:
            yield items, failures
            items, failures = [], []
        items.append(item)
    yield items, failures


def restore_items(
    model: Model, items: list[Item], settings: Settings, callback: Callback | None = None
) -> list[tuple[Item, Restored, float]]:
    """Restore images that share operator and σ: each with its draws and the seconds that it took."""
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
    return [(item, Restored(draws[None]), seconds) for item, draws in zip(items, restored.samples, strict=True)]


def is_done(row: Row, out: Path) -> bool:
    """Whether an earlier call restored this picture."""
    return not row["error"] and (out / f"{row['name']}.png").exists()


def is_begun(out: Path, note: str, overwrite: bool) -> bool:
    """Whether what is in the folder came from the settings in `note`; UserError where it did not and must stay."""
    if (out / SETTINGS).exists() and (out / SETTINGS).read_text() == note:
        return True
    if out.is_file() or (out.exists() and any(out.iterdir()) and not overwrite):
        raise UserError(f"{out} exists and holds something else: give another --out, or --overwrite")
    return False


def begin(out: Path, note: str) -> None:
    """Make the folder that of the settings in `note`: without the pictures that the report of others lists."""
    out.mkdir(parents=True, exist_ok=True)
    for row in read_report(out / REPORT) if (out / SETTINGS).exists() else []:
        earlier = out / f"{row['name']}.png"
        if not row["error"] and earlier.resolve().is_relative_to(out.resolve()):
            for path in pictures_of(earlier, 2):
                path.unlink(missing_ok=True)
    (out / REPORT).unlink(missing_ok=True)
    write_whole(out / SETTINGS, note.encode())
