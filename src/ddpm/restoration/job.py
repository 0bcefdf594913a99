"""Restore a file or a folder: read and degrade images, restore them in batches, and report. A stopped job resumes."""

import csv
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from tqdm import tqdm

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr, ssim_or_none
from ddpm.common.files import atomic_write, check_output, file_digest, user_path
from ddpm.common.pixels import make_grid, save_picture, to_pillow, to_uint8
from ddpm.common.randomness import derive_seed
from ddpm.data.folder import list_images, picture_names
from ddpm.data.images import ENDINGS, read_image, to_tensor
from ddpm.model import Model, SamplingOptions
from ddpm.restoration.methods import check_sigma, find_method
from ddpm.restoration.operator import SpectralOperator
from ddpm.restoration.operators import Inpainting
from ddpm.restoration.posterior import PIXEL_SCALE, Restored, estimate_noise, restore
from ddpm.restoration.tasks import Task, read_picture
from ddpm.samplers.algorithms import Callback, Step

ROUNDING = 1 / (255 * math.sqrt(12))  # σ of rounding to 256 levels, in [0, 1] units
HARMLESS_GAIN = 50  # if H⁺ amplifies the rounding less, taking y as exact is at least as good
ROUNDING_NOTE = (
    f"σ is taken as {ROUNDING:.4f}, the rounding of an 8-bit picture, because undoing this blur amplifies it"
)
OPERATORS = 4  # operators kept in memory; each is as large as several pictures


@dataclass(frozen=True)
class RestoreSettings:
    """What to undo and how. The fields that change a result are written to the folder of the results.

    noise: σ in [0, 1] units; None: estimated for each image. degrade: the inputs are clean and are degraded first.
    sampling: see `restore`. options: of the method.
    """

    task: Task
    method: str = "ddnm"
    noise: float | None = 0.0
    degrade: bool = False
    samples: int = 1
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        find_method(self.method)
        size = self.sampling.batch_size
        if size is not None and size < 1:
            raise UserError(f"the batch size must be at least 1, not {size}")
        if self.task.name == "denoise" and self.noise == 0:
            raise UserError("denoise needs --noise: σ in units of the [0, 1] image, or auto")
        if self.noise is not None:
            check_sigma(self.noise)
            if self.noise > 1:
                given, meant = f"{self.noise:g}", f"{self.noise / 255:.3g}"
                raise UserError(f"--noise counts in units of the [0, 1] image: for {given} of 255 levels give {meant}")
        elif self.degrade:
            raise UserError("--degrade adds the noise itself: give --noise a number instead of auto")

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, with the hash of a mask or kernel file.

        Without the batch size, so that a folder resumes with a smaller one after running out of memory.
        """
        files = [Path(word) for word in (self.task.mask, self.task.kernel) if word and Path(word).is_file()]
        values = asdict(self)
        del values["sampling"]["batch_size"]
        return {**values, "files": {str(path): file_digest(path) for path in files}}


@dataclass(frozen=True)
class Item:
    """One measurement: y (on the CPU), its operator, and where its result is written.

    out: a .png. sigma: noise of y in [0, 1] units. original: (C, H, W) in [-1, 1] if we degraded it, else None.
    """

    name: str
    out: Path
    y: Tensor
    operator: SpectralOperator
    sigma: float
    original: Tensor | None


class Reader:
    """Read pictures as items. Pictures of one shape and task share an operator; the newest operators are kept."""

    def __init__(self, model: Model, settings: RestoreSettings):
        self.model, self.settings = model, settings
        self.operators: dict[tuple[tuple[int, ...], Task], SpectralOperator] = {}

    def read(self, path: Path, name: str, out: Path) -> Item:
        """Read a picture as a measurement, or degrade it first. Raises UserError if it cannot be restored."""
        settings, channels = self.settings, self.model.image_shape[0]
        colourise = settings.task.name == "colorize" and not settings.degrade
        background = self.model.preprocessing.background
        picture = read_picture(path, 1 if colourise else channels, background, toned=colourise)
        shape = settings.task.restored_shape(picture.shape, channels)
        operator = self.operator(picture.shape if settings.degrade else shape, path, settings.task.for_picture(name))
        if settings.degrade:
            assert settings.noise is not None
            y = degrade(picture, operator, settings.noise, derive_seed(settings.sampling.seed, "degrade", name))
        else:
            y = seen_part(operator, picture)
        sigma = settings.noise
        if sigma is None:
            known = operator.known.cpu() if isinstance(operator, Inpainting) else None
            sigma = estimate_noise(y, known) / PIXEL_SCALE
        find_method(settings.method).check(operator, sigma)
        if not settings.degrade:
            sigma = max(sigma, rounding_noise(operator))
        return Item(name, out, y, operator, sigma, picture if settings.degrade else None)

    def operator(self, shape: Sequence[int], path: Path, task: Task) -> SpectralOperator:
        """The task's operator for images (C, H, W), on the model's device."""
        _, height, width = self.model.image_shape
        if shape[1] < height or shape[2] < width:
            raise UserError(f"{path} makes {shape[1]}×{shape[2]} pixels, but this model needs {height}×{width} or more")
        key = tuple(shape), task
        if key not in self.operators:
            if len(self.operators) == OPERATORS:
                del self.operators[next(iter(self.operators))]
            self.operators[key] = task.operator((shape[0], shape[1], shape[2])).to(self.model.device)
        return self.operators[key]


def degrade(image: Tensor, operator: SpectralOperator, sigma: float, seed: int) -> Tensor:
    """y = H x + σ n of one image (C, H, W) in [-1, 1], on the CPU; σ in [0, 1] units, lost pixels 0."""
    clean = operator.H(image[None].to(operator.device))[0].cpu()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return seen_part(operator, clean + PIXEL_SCALE * sigma * noise)


def rounding_noise(operator: SpectralOperator) -> float:
    """Smallest σ of a y read from a picture: its rounding if H⁺ amplifies it, as for most blurs; else 0."""
    return ROUNDING if operator.inverse_singulars.max() > HARMLESS_GAIN else 0.0


def seen_part(operator: SpectralOperator, y: Tensor) -> Tensor:
    """y (..., C, H, W) with its lost pixels set to 0; only inpainting has any."""
    return y * operator.known.to(y.device) if isinstance(operator, Inpainting) else y


PICTURED = 16  # images in the report's picture
STRIP_SIDE = 2048  # pixels: the longest side of each image's row in it
UNCERTAINTY_WHITE = 0.25  # standard deviation in [0, 1] units that is white in the picture of the uncertainty
COMPARED = ("input", "baseline", "result")
BESIDE = COMPARISON, SAMPLES, UNCERTAINTY = ("_compare", "_samples", "_std")  # endings of the pictures beside a result
Row = dict[str, Any]


def beside(out: Path, ending: str) -> Path:
    """The picture of this ending beside the result `out`."""
    return out.with_stem(out.stem + ending)


def pictures_of(out: Path, samples: int) -> list[Path]:
    """All files that `save_result` writes for the result `out`."""
    return [out, *(beside(out, ending) for ending in BESIDE if ending == COMPARISON or samples > 1)]


def save_result(item: Item, restored: Restored, seconds: float) -> Row:
    """Write an image's pictures and return its row of the report.

    Written: NAME.png (the mean) and NAME_compare.png (original, input, pseudo-inverse and result side by side). With
    several samples also NAME_samples.png and NAME_std.png, where white is a standard deviation of 0.25 or more.
    """
    measured, baseline = as_picture(item), pseudo_inverse(item)
    strip = [measured, baseline, restored.mean]
    if item.original is not None:
        strip.insert(0, item.original[None])
    if restored.samples.shape[1] > 1:
        uncertainty = 2 * (restored.std / UNCERTAINTY_WHITE) - 1
        strip.append(uncertainty)
        save_picture(to_uint8(uncertainty[0]), beside(item.out, UNCERTAINTY), overwrite=True)
        save_picture(make_grid(restored.samples[0]), beside(item.out, SAMPLES), overwrite=True)
    save_picture(make_grid(torch.cat(strip), columns=len(strip)), beside(item.out, COMPARISON), overwrite=True)
    save_picture(to_uint8(restored.mean[0]), item.out, overwrite=True)

    row: Row = {"name": item.name, "error": "", "sigma": round(item.sigma, 5)}
    row |= {"residual": round(residual(item, restored), 5), "spread": round(float(restored.std.mean()), 5)}
    row |= {"seconds": round(seconds, 3)}
    if item.original is not None:
        original = item.original[None]
        for label, image in zip(COMPARED, (measured, baseline, restored.mean), strict=True):
            row[f"psnr_{label}"] = round(float(psnr(image, original)), 2)
            similarity = ssim_or_none(image, original)
            row[f"ssim_{label}"] = "" if similarity is None else round(float(similarity), 4)
    return row


def residual(item: Item, restored: Restored) -> float:
    """Root mean square of H x̂ - y over what H sees, in [0, 1] units, so that it compares with σ."""
    operator = item.operator
    misfit = operator.H(restored.mean.to(operator.device)) - item.y.to(operator.device)
    return float((misfit.square().sum() / operator.seen.sum()).sqrt() / PIXEL_SCALE)


def pseudo_inverse(item: Item) -> Tensor:
    """H⁺y (1, C, H, W) on the CPU; directions that H does not see are 0, mid-grey."""
    return item.operator.H_pinv(item.y[None].to(item.operator.device)).cpu().clamp(-1, 1)


def as_picture(item: Item) -> Tensor:
    """The measurement enlarged to the restored image's shape, (1, C, H, W), for pictures and PSNR."""
    channels, height, width = item.operator.image_shape
    small = item.y[None].clamp(-1, 1)
    return interpolate(small, size=(height, width), mode="nearest-exact").expand(1, channels, height, width)


def read_report(path: Path) -> list[Row]:
    """The rows of a report; none if there is no report."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_report(path: Path, rows: list[Row]) -> None:
    """Write the rows as CSV; a cell is empty if its row lacks the column."""
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def write_picture(path: Path, results: list[Path]) -> None:
    """Write the first comparisons below each other, large ones reduced."""
    strips = []
    for result in results[:PICTURED]:
        with suppress(UserError):  # missing or too large to read: finished work must not fail here
            strips.append(_thumbnail(read_image(beside(result, COMPARISON))))
    if not strips:
        path.unlink(missing_ok=True)
        return
    width = max(strip.shape[2] for strip in strips)
    padded = [pad(strip, (0, width - strip.shape[2]), value=255) for strip in strips]
    save_picture(torch.cat(padded, dim=1), path, overwrite=True)


def _thumbnail(strip: Tensor) -> Tensor:
    """A picture uint8 (C, H, W) reduced to at most STRIP_SIDE pixels per side."""
    picture = to_pillow(strip)
    picture.thumbnail((STRIP_SIDE, STRIP_SIDE))
    return to_tensor(picture)


def averages(rows: list[Row]) -> dict[str, float]:
    """The mean of each number of the report over the images that have it."""
    numbers: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("name", "error", "digest") and value not in ("", None) and math.isfinite(float(value)):
                numbers.setdefault(key, []).append(float(value))
    return {key: sum(values) / len(values) for key, values in numbers.items()}


REPORT, PICTURE, SETTINGS = "report.csv", "report.png", "settings.json"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def restore_file(
    model: Model, source: str | Path, out: str | Path, settings: RestoreSettings, *, overwrite: bool = False
) -> tuple[Item, Row]:
    """Restore one picture to `out`, a .png, with more pictures beside it; see `save_result`."""
    source, out = user_path(source), user_path(out)
    for path in pictures_of(out, settings.samples):
        check_output(path, (".png",), overwrite=overwrite)
    item = Reader(model, settings).read(source, source.stem, out)
    replaced = pictures_of(out, 2) if overwrite and out.exists() else []
    total = model.diffusion.schedule.timesteps
    with tqdm(total=total, desc="restoring", bar_format=BAR, delay=2, leave=False, disable=None) as bar:

        def show(step: Step) -> None:  # the position of x_t among the timesteps: jumps decrease it
            bar.update(total - 1 - round(step.t_prev) - bar.n)

        (result,) = restore_items(model, [item], settings, show)
    row = save_result(*result)
    for path in set(replaced) - {*pictures_of(out, settings.samples), source}:
        path.unlink(missing_ok=True)  # the samples of the earlier result do not belong to this one
    return item, row


def restore_folder(
    model: Model, source: str | Path, out: str | Path, settings: RestoreSettings, *, overwrite: bool = False
) -> list[Row]:
    """Restore every picture in `source` and its sub-folders, and return the rows of the report.

    A call with the same settings resumes: results of unchanged pictures are kept. A row with an `error` is a picture
    that was left out, because it cannot be read, does not fit, or its result would replace another picture of the
    report. Pictures below `out` and the mask itself are never inputs.
    """
    source, out = user_path(source), user_path(out)
    labels = settings.sampling.labels
    if labels is not None and len(model.resolve_labels(labels) or []) > 1:
        raise UserError("a folder takes one label: put the pictures of each class in a folder of their own")
    paths, skipped = inputs(source, out, settings.task)
    digests = {name: file_digest(path) + own_mask_digest(settings.task, name) for name, path in paths.items()}
    about = {"weights": model.weights_hash, **settings.as_json()}
    note = json.dumps(about, indent=1, sort_keys=True, default=str)
    reserved = {Path(PICTURE).stem, *(name + ending for name in paths for ending in BESIDE)}
    begun = is_begun(out, note, overwrite)
    rows = {
        row["name"]: row
        for row in (read_report(out / REPORT) if begun else [])
        if not row["error"]
        and (out / f"{row['name']}.png").exists()
        and row.get("digest") == digests.get(row["name"])
        and row["name"] not in reserved
    }
    todo = {name: path for name, path in paths.items() if name not in rows}
    with tqdm(total=len(todo), unit="image", desc="restoring", disable=len(todo) < 2) as bar:
        for items, failures in batches(model, todo, reserved, out, settings):
            results = restore_items(model, items, settings)  # refuses a wrong option before anything is changed
            if results and not begun:
                begin(out, note)
                begun = True
            for row in [*(save_result(*result) for result in results), *failures]:
                rows[row["name"]] = {**row, "digest": digests[row["name"]]}
                bar.update()
            if not all(row["error"] for row in rows.values()):
                write_report(out / REPORT, [*(rows[name] for name in paths if name in rows), *skipped])
    finished = [rows[name] for name in paths]
    if all(row["error"] for row in finished):
        raise UserError(f"no picture in {source} could be restored; the first: {finished[0]['error']}")
    write_picture(out / PICTURE, [out / f"{row['name']}.png" for row in finished if not row["error"]])
    return finished + skipped


def inputs(source: Path, out: Path, task: Task) -> tuple[dict[str, Path], list[Row]]:
    """The pictures to restore by their names, and a row with an error for each file that was left out."""
    found, left_out = list_images(source)
    results = out.resolve()
    mask = user_path(task.mask).resolve() if task.mask else None
    paths = [path for path in found if not path.resolve().is_relative_to(results)]
    if found and not paths:
        raise UserError(f"all pictures in {source} are below {out}, the folder of the results: give another --out")
    paths = sorted(path for path in paths if mask is None or not path.resolve().is_relative_to(mask))
    skipped = [
        {"name": name, "error": reason, "digest": ""}
        for name, reason in left_out
        if not (source / name).resolve().is_relative_to(results)
    ]
    if not paths:
        reason = f"; left out: {skipped[0]['name']}: {skipped[0]['error']}" if skipped else ""
        raise UserError(f"no pictures in {source}: looked for {', '.join(ENDINGS)}{reason}")
    return dict(zip(picture_names([path.relative_to(source) for path in paths]), paths, strict=True)), skipped


def own_mask_digest(task: Task, name: str) -> str:
    """Hash of the picture's own mask; empty if all pictures share one, or if it has none."""
    with suppress(UserError):
        own = task.for_picture(name)
        return "" if own is task or own.mask is None else file_digest(Path(own.mask))
    return ""


def batches(
    model: Model, paths: dict[str, Path], reserved: set[str], out: Path, settings: RestoreSettings
) -> Iterator[tuple[list[Item], list[Row]]]:
    """Yield batches of pictures that share operator and σ, each with the rows of the pictures that failed.

    reserved: names that no result may have, because other pictures of the report have them.
    """
    size = settings.sampling.batch_size or model.default_batch_size
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
    model: Model, items: list[Item], settings: RestoreSettings, callback: Callback | None = None
) -> list[tuple[Item, Restored, float]]:
    """Restore images that share operator and σ: each with its samples and the seconds that it took."""
    if not items:
        return []
    start = time.monotonic()
    restored = restore(
        model,
        torch.stack([item.y for item in items]),
        items[0].operator,
        settings.sampling,
        method=settings.method,
        noise=items[0].sigma,
        samples=settings.samples,
        names=[item.name for item in items],
        callback=callback,
        **settings.options,
    )
    seconds = (time.monotonic() - start) / len(items)
    return [(item, Restored(samples[None]), seconds) for item, samples in zip(items, restored.samples, strict=True)]


def is_begun(out: Path, note: str, overwrite: bool) -> bool:
    """Whether the folder holds results of the settings in `note`.

    Raises UserError if it holds anything else that must not be overwritten.
    """
    if (out / SETTINGS).exists() and (out / SETTINGS).read_text() == note:
        return True
    if out.is_file() or (out.exists() and any(out.iterdir()) and not overwrite):
        raise UserError(f"{out} exists and holds something else: give another --out, or --overwrite")
    return False


def begin(out: Path, note: str) -> None:
    """Start the folder for the settings in `note`: remove the results that an earlier report lists."""
    out.mkdir(parents=True, exist_ok=True)
    for row in read_report(out / REPORT) if (out / SETTINGS).exists() else []:
        earlier = out / f"{row['name']}.png"
        if not row["error"] and earlier.resolve().is_relative_to(out.resolve()):
            for path in pictures_of(earlier, 2):
                path.unlink(missing_ok=True)
    (out / REPORT).unlink(missing_ok=True)
    atomic_write(out / SETTINGS, note)
