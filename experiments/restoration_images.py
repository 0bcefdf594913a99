"""PSNR and SSIM of restored test images, against what was given and against classical methods.

    python experiments/restoration_images.py --model digits --data mnist:test
        writes experiments/results/restoration_digits.json (about half an hour on two cores)

For every task: the degraded input, the pseudo-inverse, total variation (min ½‖Hx - y‖² + λ TV(x) by FISTA, with
scikit-image's Chambolle step as its proximal map), non-local means of the pseudo-inverse (scikit-image), and DDRM:
one draw, and the mean of several. λ and the filter strength of the classical methods are the ones that do best on
these very images; DDRM is told nothing but σ.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor
from torch.nn.functional import interpolate

import ddpm
from ddpm.data import open_dataset
from ddpm.fidelity import psnr, ssim
from ddpm.pixels import to_float
from ddpm.restoration import Inpainting, Task, restore
from ddpm.restoration.operator import SpectralOperator

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
TV_WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)  # on the [0, 1] scale
TV_ITERATIONS = 60
NLM_STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
RESULTS = Path(__file__).parent / "results"


def total_variation(operator: SpectralOperator, y: Tensor, weight: float) -> Tensor:
    """FISTA on ½‖Hx - y‖² + λ TV(x), images in [0, 1] in the inner step; step length 1/s²max."""
    step = 1 / float(operator.singulars.max()) ** 2
    x = previous = operator.H_pinv(y)
    momentum = 1.0
    for _ in range(TV_ITERATIONS):
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


def best(candidates: dict[float, Tensor], originals: Tensor) -> dict[str, float]:
    """The figures of the candidate with the highest PSNR, and its parameter."""
    found = {parameter: figures(images, originals) for parameter, images in candidates.items()}
    parameter = max(found, key=lambda key: found[key]["psnr"])
    return {**found[parameter], "parameter": parameter}


def run_row(model: ddpm.Model, label: str, task: Task, sigma: float, x: Tensor, arguments: argparse.Namespace) -> dict:
    operator = task.operator(tuple(x.shape[1:]))
    clean = operator.H(x)
    y = clean + 2 * sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    if isinstance(operator, Inpainting):
        y = y * operator.known
    inverse = operator.H_pinv(y)
    shown = interpolate(y, size=x.shape[-2:], mode="nearest-exact").expand_as(x)
    row = {"task": label, "sigma": sigma, "input": figures(shown, x), "pseudo-inverse": figures(inverse, x)}
    row["total variation"] = best({w: total_variation(operator, y, w) for w in TV_WEIGHTS}, x)
    row["non-local means"] = best(
        {h: torch.stack([nl_means(one, h, sigma) for one in inverse]) for h in NLM_STRENGTHS}, x
    )
    restored = restore(
        model, y, operator, noise=sigma, samples=arguments.samples, steps=arguments.steps, batch_size=32
    )
    row["DDRM, one draw"] = figures(restored.samples[:, 0], x)
    row[f"DDRM, mean of {arguments.samples}"] = figures(restored.mean, x)
    columns = ("input", "pseudo-inverse", "total variation", "non-local means", "DDRM, one draw")
    columns += (f"DDRM, mean of {arguments.samples}",)
    print(f"{label:22}" + "  ".join(f"{row[c]['psnr']:6.2f}/{row[c]['ssim']:.3f}" for c in columns), flush=True)
    if arguments.picture:
        strip = [x, shown, inverse, restored.samples[:, 0], restored.mean, restored.std * 8 - 1]
        ddpm.save_grid(
            torch.cat([part[: arguments.picture] for part in strip]),
            RESULTS / f"{arguments.out.stem}_{label.replace(' ', '_').replace('%', '')}.png",
            columns=arguments.picture,
            overwrite=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="mnist:test")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--picture", type=int, default=0, help="also save a grid of this many columns for every row")
    parser.add_argument("--out", type=Path, default=RESULTS / "restoration_digits.json")
    arguments = parser.parse_args()
    model = ddpm.load(arguments.model)
    channels, *size = model.image_shape
    data = open_dataset(arguments.data, image_size=tuple(size), channels=channels, labels=False)
    x = to_float(data.batch(list(range(arguments.num)))[0])
    rows = [run_row(model, *row, x, arguments) for row in ROWS]
    about = {"model": arguments.model, "weights": model.weights_hash, "data": arguments.data, "images": arguments.num}
    about |= {"samples": arguments.samples, "steps": arguments.steps}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
