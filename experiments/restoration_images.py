"""PSNR and SSIM of restored test images, against what was given and against classical methods.

    python -m experiments.restoration_images --model digits --data mnist:test --name restoration_digits

For every task: the degraded input, the pseudo-inverse, total variation (min ½‖Hx - y‖² + λ TV(x) by FISTA, with
scikit-image's Chambolle step as its proximal map), non-local means of input or pseudo-inverse (scikit-image), DDRM
(one draw, and the mean of several), and DDNM(+) with time travel (the mean of several). λ and the filter strength of
the classical methods are the ones that do best on these very images; ours are told nothing but σ.
"""

import argparse
import time

import numpy as np
import torch
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor
from torch.nn.functional import interpolate

import ddpm
from ddpm.data import open_dataset
from ddpm.fidelity import psnr, ssim
from ddpm.pixels import to_float
from ddpm.restoration import Denoising, Inpainting, Task, restore
from ddpm.restoration.operator import SpectralOperator
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
TV_WEIGHTS = (0.01, 0.03, 0.1, 0.2, 0.4)  # on the [0, 1] scale
TV_ITERATIONS = 40
TRAVEL = {"travel_length": 4, "travel_repeats": 2}
PICTURED = 2  # images of each row in the picture
COMMAND = "python -m experiments.restoration_images --model {0.model} --data {0.data} --name {0.name}"
NLM_STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def total_variation(operator: SpectralOperator, y: Tensor, weight: float) -> Tensor:
    """FISTA on ½‖Hx - y‖² + λ TV(x), images in [0, 1] in the inner step; step length 1/s²max."""
    step = 1 / float(operator.singulars.max()) ** 2
    x = previous = step * operator.Ht(y)
    momentum = 1.0
    for _ in range(1 if isinstance(operator, Denoising) else TV_ITERATIONS):  # H = 1: the proximal map is the answer
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = x + (momentum - 1) / following * (x - previous)
        target = ahead - step * operator.Ht(operator.H(ahead) - y)
        previous, momentum = x, following
        x = torch.stack([chambolle(one, step * weight) for one in target])
    return x.clamp(-1, 1)


def chambolle(image: Tensor, weight: float) -> Tensor:
    """argmin ½‖x - image‖² + λ TV(x) of one image (C, H, W) in [-1, 1]."""
    return from_pixels(denoise_tv_chambolle(as_pixels(image), weight=weight, max_num_iter=30, channel_axis=-1))


def nl_means(image: Tensor, strength: float, sigma: float) -> Tensor:
    """Non-local means of one image (C, H, W) in [-1, 1]."""
    pixels = as_pixels(image.clamp(-1, 1))
    found = denoise_nl_means(pixels, patch_size=5, patch_distance=6, h=strength, sigma=sigma, channel_axis=-1)
    return from_pixels(found.reshape(pixels.shape))


def as_pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] as scikit-image has it: (H, W, C) in [0, 1]."""
    return (image.permute(1, 2, 0).numpy() + 1) / 2


def from_pixels(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(pixels, dtype=np.float32)).permute(2, 0, 1) * 2 - 1


def figures(images: Tensor, originals: Tensor) -> dict[str, float]:
    images = images.clamp(-1, 1)
    each = psnr(images, originals)
    return {
        "psnr": round(float(each.mean()), 2),
        "standard_error": round(float(each.std() / len(each) ** 0.5), 2),
        "ssim": round(float(ssim(images, originals).mean()), 3),
    }


def best(candidates: dict[float | str, Tensor], originals: Tensor) -> tuple[dict[str, float], Tensor]:
    """The figures of the candidate with the highest PSNR and its parameter, and its images."""
    found = {parameter: figures(images, originals) for parameter, images in candidates.items()}
    parameter = max(found, key=lambda key: found[key]["psnr"])
    return {**found[parameter], "parameter": parameter}, candidates[parameter]


def run_row(
    model: ddpm.Model, label: str, task: Task, sigma: float, x: Tensor, arguments: argparse.Namespace
) -> tuple[dict, Tensor]:
    """A row of the table, and (PICTURED, 7, C, H, W): original, input, pseudo-inverse, TV, DDNM's draw, mean, std."""
    operator = task.operator(tuple(x.shape[1:]))
    clean = operator.H(x)
    y = clean + 2 * sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    if isinstance(operator, Inpainting):
        y = y * operator.known
    inverse = operator.H_pinv(y)
    shown = interpolate(y, size=x.shape[-2:], mode="nearest-exact").expand_as(x)
    row = {"task": label, "sigma": sigma, "input": figures(shown, x), "pseudo-inverse": figures(inverse, x)}
    row["total variation"], classical = best({w: total_variation(operator, y, w) for w in TV_WEIGHTS}, x)
    smoothed = {
        f"{h} on the {name}": torch.stack([nl_means(one, h, sigma) for one in start])
        for h in NLM_STRENGTHS
        for name, start in {"input": shown, "pseudo-inverse": inverse}.items()
    }
    row["non-local means"], _ = best(smoothed, x)
    options = {"noise": sigma, "samples": arguments.samples, "steps": arguments.steps, "batch_size": 32}
    drawn = restore(model, y, operator, **options)
    travelled = restore(model, y, operator, method="ddnm", **TRAVEL, **options)
    row["DDRM, one draw"] = figures(drawn.samples[:, 0], x)
    row[f"DDRM, mean of {arguments.samples}"] = figures(drawn.mean, x)
    row[f"DDNM(+), mean of {arguments.samples}"] = figures(travelled.mean, x)
    print(f"{label:22}" + "  ".join(f"{key}: {v['psnr']}" for key, v in row.items() if isinstance(v, dict)), flush=True)
    shown_parts = [x, shown, inverse, classical, travelled.samples[:, 0], travelled.mean, travelled.std * 8 - 1]
    return row, torch.stack([part[:PICTURED].clamp(-1, 1) for part in shown_parts], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="mnist:test")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4, help="draws that are averaged")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--name", default="restoration_digits", help="of the result and its picture")
    arguments = parser.parse_args()
    model = ddpm.load(arguments.model)
    channels, *size = model.image_shape
    data = open_dataset(arguments.data, image_size=tuple(size), channels=channels, labels=False)
    x = to_float(data.batch(list(range(arguments.num)))[0])
    started = time.monotonic()
    about = {"model": arguments.model, "weights": model.weights_hash, "data": arguments.data, "images": arguments.num}
    about |= {"samples": arguments.samples, "steps": arguments.steps, "machine": machine()}
    about["command"] = COMMAND.format(arguments)
    rows, strips = [], []
    for task in ROWS:  # what is done is kept, should the rest be cut short
        row, strip = run_row(model, *task, x, arguments)
        rows.append(row)
        strips.append(strip.flatten(0, 1))
        about["seconds"] = round(time.monotonic() - started)
        save_result(arguments.name, {**about, "rows": rows})
        ddpm.save_grid(torch.cat(strips), PICTURES / f"{arguments.name}.png", columns=PICTURED * 7, overwrite=True)


if __name__ == "__main__":
    main()
