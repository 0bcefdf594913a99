"""Restore a file or a folder: read and degrade images, restore them in batches, and report. A stopped job resumes."""

import csv
import hashlib
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
from ddpm.common.fidelity import psnr, ssim
from ddpm.common.files import atomic_write, check_output, user_path
from ddpm.common.hardware import Precision
from ddpm.common.pixels import make_grid, save_picture, to_pillow, to_uint8
from ddpm.common.randomness import derive_seed
from ddpm.data.images import ENDINGS, read_image, to_tensor
from ddpm.data.sources import picture_names
from ddpm.model import Labels, Model
from ddpm.restoration.methods import check_sigma, find_method
from ddpm.restoration.operator import SpectralOperator
from ddpm.restoration.operators import Inpainting
from ddpm.restoration.posterior import PIXEL_SCALE, Restored, estimate_noise, restore
from ddpm.restoration.tasks import Task, read_picture
from ddpm.samplers.algorithms import Callback, Step

ROUNDING = 1 / (255 * math.sqrt(12))  # σ of what a picture's 256 levels leave out, in [0, 1] units
HARMLESS_GAIN = 50  # where H⁺ multiplies it by less, taking y as exact does at least as well
ROUNDING_NOTE = f"σ is taken as {ROUNDING:.4f}: an 8-bit picture's rounding, which undoing this blur would multiply"

OPERATORS = 4  # of so many shapes at once: each is as large as several pictures


def file_digest(path: Path) -> str:
    """Names a file's content; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()
    except OSError:
        return ""


@dataclass(frozen=True)
class Settings:
    """What `ddpm restore` is told; the fields that change a result are kept beside a folder's results."""

    task: Task
    method: str = "ddnm"
    noise: float | None = 0.0  # σ in [0, 1] units; None: estimated from each image
    degrade: bool = False
    samples: int = 1
    steps: int | None = None
    labels: Labels = None
    guidance: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    batch_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        find_method(self.method)
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {self.batch_size}")
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
        """Plain values, for the note beside a folder's results; of a mask or kernel file its content too.

        Without the batch size: after running out of memory, the call goes on with a smaller one.
        """
        files = [Path(word) for word in (self.task.mask, self.task.kernel) if word and Path(word).is_file()]
        told = asdict(self)
        del told["batch_size"]
        return {**told, "files": {str(path): file_digest(path) for path in files}}


@dataclass(frozen=True)
class Item:
    """A measurement y (on the CPU) with all that is known of it, and where its results go.

    out: where its result goes, a .png. sigma: the noise of y in [0, 1] units. original: (C, H, W), only where we
    degraded it ourselves.
    """

    name: str
    out: Path
    y: Tensor
    operator: SpectralOperator
    sigma: float
    original: Tensor | None


class Reader:
    """Reads pictures as items; operators are shared between pictures of one shape, of which the newest are kept."""

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        self.operators: dict[tuple[int, int, int], SpectralOperator] = {}

    def read(self, path: Path, name: str, out: Path) -> Item:
        """A picture as the measurement it is, or spoilt first. Raises UserError where it cannot be restored."""
        settings, channels = self.settings, self.model.image_shape[0]
        grey = settings.task.name == "colorize" and not settings.degrade
        picture = read_picture(path, 1 if grey else channels, self.model.preprocessing.background)
        shape = settings.task.restored_shape(picture.shape, channels)
        operator = self.operator(picture.shape if settings.degrade else shape, path)
        if settings.degrade:
            assert settings.noise is not None
            y = degrade(picture, operator, settings.noise, derive_seed(settings.seed, "degrade", name))
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

    def operator(self, shape: Sequence[int], path: Path) -> SpectralOperator:
        """The task's operator for images (C, H, W), on the model's device."""
        _, height, width = self.model.image_shape
        if shape[1] < height or shape[2] < width:
            raise UserError(f"{path} makes {shape[1]}×{shape[2]} pixels, but this model needs {height}×{width} or more")
        key = (shape[0], shape[1], shape[2])
        if key not in self.operators:
            if len(self.operators) == OPERATORS:
                del self.operators[next(iter(self.operators))]
            self.operators[key] = self.settings.task.operator(key).to(self.model.device)
        return self.operators[key]


def degrade(image: Tensor, operator: SpectralOperator, sigma: float, seed: int) -> Tensor:
    """y = H x + σ n of one image (C, H, W) in [-1, 1], σ in [0, 1] units; y comes back on the CPU."""
    clean = operator.H(image[None].to(operator.device))[0].cpu()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return seen_part(operator, clean + PIXEL_SCALE * sigma * noise)


def rounding_noise(operator: SpectralOperator) -> float:
    """The least σ of a y read from a picture: its rounding, where H⁺ multiplies that as most blurs' does; else 0."""
    return ROUNDING if operator.inverse_singulars.max() > HARMLESS_GAIN else 0.0


def seen_part(operator: SpectralOperator, y: Tensor) -> Tensor:
    """y with its lost pixels 0, whatever stood there; other degradations lose none."""
    return y * operator.known.cpu() if isinstance(operator, Inpainting) else y


PICTURED = 16  # images in the report's picture
STRIP_SIDE = 2048  # pixels, of each of them: so the picture is bounded too
UNCERTAINTY_WHITE = 0.25  # the standard deviation, in [0, 1] units, that an uncertainty map shows as white
COMPARED = ("input", "baseline", "result")
COMPARISON, TIMESTEP_SAMPLERS, UNCERTAINTY = BESIDE = (
    "_compare",
    "_draws",
    "_std",
)  # endings of the pictures beside a result
Row = dict[str, Any]


def save_result(item: Item, restored: Restored, seconds: float) -> Row:
    """Write an image's pictures; returns its line of the report."""
    write_images(item, restored)
    return row_of(item, restored, seconds)


def beside(out: Path, ending: str) -> Path:
    """The picture of this ending beside the result `out`."""
    return out.with_stem(out.stem + ending)


def pictures_of(out: Path, samples: int) -> list[Path]:
    """All that `write_images` writes for the result `out`."""
    return [out, *(beside(out, ending) for ending in BESIDE if ending == COMPARISON or samples > 1)]


def write_images(item: Item, restored: Restored) -> None:
    """NAME.png (the mean), NAME_compare.png (original, input, baseline, result side by side), and where several
    samples were drawn NAME_draws.png and NAME_std.png, the uncertainty: white is a deviation of 0.25 or more."""
    baseline = pseudo_inverse(item)
    strip = [as_picture(item), baseline, restored.mean]
    if item.original is not None:
        strip.insert(0, item.original[None])
    if restored.samples.shape[1] > 1:
        uncertainty = 2 * (restored.std / UNCERTAINTY_WHITE) - 1
        strip.append(uncertainty)
        save_picture(to_uint8(uncertainty[0]), beside(item.out, UNCERTAINTY), overwrite=True)
        save_picture(make_grid(restored.samples[0]), beside(item.out, TIMESTEP_SAMPLERS), overwrite=True)
    save_picture(make_grid(torch.cat(strip), columns=len(strip)), beside(item.out, COMPARISON), overwrite=True)
    save_picture(to_uint8(restored.mean[0]), item.out, overwrite=True)


def row_of(item: Item, restored: Restored, seconds: float) -> Row:
    """An image's line of the report; residual: root mean square of H x̂ - y, in [0, 1] units, to compare with σ."""
    operator = item.operator
    misfit = operator.H(restored.mean.to(operator.device)) - item.y.to(operator.device)
    residual = (misfit.square().sum() / operator.seen.sum()).sqrt() / PIXEL_SCALE
    row: Row = {"name": item.name, "error": "", "sigma": round(item.sigma, 5)}
    row |= {"residual": round(float(residual), 5), "spread": round(float(restored.std.mean()), 5)}
    row |= {"seconds": round(seconds, 3)}
    if item.original is not None:
        for label, image in zip(COMPARED, (as_picture(item), pseudo_inverse(item), restored.mean), strict=True):
            row[f"psnr_{label}"] = round(float(psnr(image, item.original[None])), 2)
            large = min(item.original.shape[1:]) >= 11
            row[f"ssim_{label}"] = round(float(ssim(image, item.original[None])), 4) if large else ""
    return row


def pseudo_inverse(item: Item) -> Tensor:
    """H⁺y (1, C, H, W) on the CPU; what H does not see is 0, mid-grey."""
    return item.operator.H_pinv(item.y[None].to(item.operator.device)).cpu().clamp(-1, 1)


def as_picture(item: Item) -> Tensor:
    """The measurement in the restored image's shape, (1, C, H, W), for the eye and for PSNR."""
    channels, height, width = item.operator.image_shape
    small = item.y[None].clamp(-1, 1)
    return interpolate(small, size=(height, width), mode="nearest-exact").expand(1, channels, height, width)


def read_report(path: Path) -> list[Row]:
    """The rows of a report, or none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_report(path: Path, rows: list[Row]) -> None:
    """The rows as CSV; a column that a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode())


def write_picture(path: Path, results: list[Path]) -> None:
    """The first comparisons under each other, large ones made smaller.

    Those that are gone or too large to be read are left out: the work is done, and this must not fail it.
    """
    strips = []
    for result in results[:PICTURED]:
        with suppress(UserError):
            strips.append(_thumbnail(read_image(beside(result, COMPARISON))))
    if not strips:
        path.unlink(missing_ok=True)
        return
    width = max(strip.shape[2] for strip in strips)
    padded = [pad(strip, (0, width - strip.shape[2]), value=255) for strip in strips]
    save_picture(torch.cat(padded, dim=1), path, overwrite=True)


def _thumbnail(strip: Tensor) -> Tensor:
    """A picture uint8 (C, H, W) of at most STRIP_SIDE pixels a side."""
    picture = to_pillow(strip)
    picture.thumbnail((STRIP_SIDE, STRIP_SIDE))
    return to_tensor(picture)


def averages(rows: list[Row]) -> dict[str, float]:
    """The mean of every figure of the report over the images that have it."""
    figures: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("name", "error", "digest") and value not in ("", None) and math.isfinite(float(value)):
                figures.setdefault(key, []).append(float(value))
    return {key: sum(values) / len(values) for key, values in figures.items()}


REPORT, PICTURE, SETTINGS = "report.csv", "report.png", "settings.json"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def restore_file(
    model: Model, source: Path, out: Path, settings: Settings, *, overwrite: bool = False
) -> tuple[Item, Row]:
    """Restore one picture to `out`, a .png; more pictures stand beside it, see `report.write_images`."""
    source, out = user_path(source), user_path(out)
    for path in pictures_of(out, settings.samples):
        check_output(path, (".png",), overwrite=overwrite)
    item = Reader(model, settings).read(source, source.stem, out)
    replaced = pictures_of(out, 2) if overwrite and out.exists() else []
    total = model.diffusion.schedule.timesteps
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
    source, out = user_path(source), user_path(out)
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
    atomic_write(out / SETTINGS, note.encode())
