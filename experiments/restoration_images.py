"""PSNR and SSIM of restored test images, against what was given and against classical methods.

    python -m experiments.restoration_images --model digits --data mnist:test --name restoration_digits --images 100

For every task: the degraded input, the pseudo-inverse, total variation, non-local means of input or pseudo-inverse,
DDRM and DDNM(+), the default (each one draw, and the mean of several), with their own numbers of steps. λ and the
filter strength of the classical methods are the ones that do best on these very images; ours are told nothing but σ.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import ddpm
from ddpm.common.fidelity import psnr, ssim
from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.plotting.plots import plot_images, save_figure
from ddpm.restoration import Inpainting, Task, restore
from ddpm.restoration.operator import LinearOperator
from ddpm.restoration.posterior import PIXEL_SCALE
from experiments.classical import nl_means, total_variation
from experiments.record import PICTURES, machine, save_result

# task, its parameters, σ in units of the [0, 1] image
ROWS: list[tuple[str, Task, float]] = [
    ("noise σ = 0.1", Task("denoise"), 0.1),
    ("noise σ = 0.25", Task("denoise"), 0.25),
    ("noise σ = 0.5", Task("denoise"), 0.5),
    ("inpainting, half", Task("inpaint", mask="half"), 0.0),
    ("inpainting, 75% lost", Task("inpaint", mask="random:0.75"), 0.0),
    ("super-resolution 2×", Task("superresolve", scale=2), 0.0),
    ("super-resolution 4×", Task("superresolve", scale=4), 0.0),
    ("deblurring, σ = 0.05", Task("deblur", kernel="gaussian:1.5"), 0.05),
]
TV_WEIGHTS = (0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # λ for images in [0, 1]; 0 where there is no noise
NLM_STRENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # h, likewise
COLUMNS = ("original", "input", "pseudo-inverse", "total variation", "a draw", "mean", "deviation")  # of the picture
WHITE = 0.25  # the standard deviation, of images in [0, 1], that the picture shows as white
COMMAND = (
    "python -m experiments.restoration_images --model {0.model} --data {0.data} --name {0.name} --images {0.images} "
    "--samples {0.samples}"
)


def measure(operator: LinearOperator, x: Tensor, sigma: float) -> Tensor:
    """y = H x + σ n, lost pixels 0, with the noise of one seed."""
    y = operator.H(x)
    y = y + PIXEL_SCALE * sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y * operator.known if isinstance(operator, Inpainting) else y


def figures(images: Tensor, originals: Tensor) -> dict[str, float]:
    images = images.clamp(-1, 1)
    each = psnr(images, originals)
    return {
        "psnr": round(float(each.mean()), 2),
        "standard_error": round(float(each.std() / len(each) ** 0.5), 2),
        "ssim": round(float(ssim(images, originals).mean()), 3),
    }


def best(candidates: dict[float | str, Tensor], originals: Tensor) -> tuple[dict[str, float | str], Tensor]:
    """The figures of the candidate with the highest PSNR and its parameter, and its images."""
    found = {parameter: figures(images, originals) for parameter, images in candidates.items()}
    parameter = max(found, key=lambda key: found[key]["psnr"])
    return {**found[parameter], "parameter": parameter}, candidates[parameter]


def run_row(
    model: ddpm.Model, label: str, task: Task, sigma: float, x: Tensor, samples: int
) -> tuple[dict[str, Any], Tensor]:
    """A row of the table, and what the picture's COLUMNS show of every image, (N, 7, C, H, W); the last by DDNM(+)."""
    operator = task.operator(tuple(x.shape[1:])).to(model.device)
    y = measure(operator, x.to(model.device), sigma)
    inverse = operator.H_pinv(y).cpu()
    shown = interpolate(y, size=x.shape[-2:], mode="nearest-exact").expand_as(x).cpu()
    row = {"task": label, "sigma": sigma, "input": figures(shown, x), "pseudo-inverse": figures(inverse, x)}
    weights = TV_WEIGHTS if sigma > 0 else (0.0,)
    smoothest = {w: total_variation(operator, y, PIXEL_SCALE * w).cpu() for w in weights}
    row["total variation"], classical = best(smoothest, x)
    starts = {"pseudo-inverse": inverse} if task.name == "denoise" else {"input": shown, "pseudo-inverse": inverse}
    smoothed = {
        f"{strength} on the {name}": nl_means(start, strength, sigma)
        for strength in NLM_STRENGTHS
        for name, start in starts.items()
    }
    row["non-local means"], _ = best(smoothed, x)
    ddrm, ddnm = (restore(model, y, operator, method=m, noise=sigma, samples=samples) for m in ("ddrm", "ddnm"))
    for name, restored in {"DDRM": ddrm, "DDNM(+)": ddnm}.items():
        row[f"{name}, one draw"] = figures(restored.samples[:, 0], x)
        row[f"{name}, mean of {samples}"] = figures(restored.mean, x)
    print(f"{label:22}" + "  ".join(f"{key}: {v['psnr']}" for key, v in row.items() if isinstance(v, dict)), flush=True)
    strip = [x, shown, inverse, classical, ddnm.samples[:, 0], ddnm.mean, 2 / WHITE * ddnm.std - 1]
    return row, torch.stack([part.clamp(-1, 1) for part in strip], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="mnist:test")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4, help="draws that are averaged")
    parser.add_argument("--name", default="restoration_digits", help="of the result and its picture")
    arguments = parser.parse_args()
    model = ddpm.load(arguments.model)
    channels, *size = model.image_shape
    data = open_dataset(arguments.data, image_size=tuple(size), channels=channels, labels=False)
    x = to_float(data.batch(list(range(arguments.images)))[0])
    started = time.monotonic()
    about = {"model": arguments.model, "weights": model.weights_hash, "data": arguments.data}
    about |= {"images": arguments.images, "samples": arguments.samples}
    about |= {"machine": machine(), "command": COMMAND.format(arguments)}
    rows, strips = [], []
    for task in ROWS:  # what is done is kept, should the rest be cut short
        row, strip = run_row(model, *task, x, arguments.samples)
        rows.append(row)
        strips.append(strip[len(strips) % len(strip)])  # another image every row
        about["seconds"] = round(time.monotonic() - started)
        save_result(arguments.name, {**about, "rows": rows})
        drawn = plot_images(torch.stack(strips), columns=COLUMNS, rows=[row["task"] for row in rows])
        save_figure(drawn, PICTURES / f"{arguments.name}.png", overwrite=True)


if __name__ == "__main__":
    main()
