"""What a restoration leaves behind: pictures side by side, and one line of figures an image."""

import csv
import io
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ddpm.data.decode import read_image, to_tensor
from ddpm.errors import UserError
from ddpm.fidelity import psnr, ssim
from ddpm.files import write_whole
from ddpm.pixels import to_uint8
from ddpm.restoration.items import Item
from ddpm.restoration.posterior import PIXEL_SCALE, Restored
from ddpm.viewing.pictures import make_grid, save_picture, to_pillow

PICTURED = 16  # images in the report's picture
STRIP_SIDE = 2048  # pixels, of each of them: so the picture is bounded too
UNCERTAINTY_WHITE = 0.25  # the standard deviation, in [0, 1] units, that an uncertainty map shows as white
COMPARED = ("input", "baseline", "result")
COMPARISON, DRAWS, UNCERTAINTY = BESIDE = ("_compare", "_draws", "_std")  # endings of the pictures beside a result
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
        save_picture(make_grid(restored.samples[0]), beside(item.out, DRAWS), overwrite=True)
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
    write_whole(path, text.getvalue().encode())


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
