"""Measure PSNR and SSIM of restored test images, compared with the input and with classical methods.

    python -m experiments.restoration.images --model digits --data mnist:test --name restoration_digits --images 100

For every task: the degraded input, the pseudo-inverse, total variation, non-local means of the input or of the
pseudo-inverse, DDRM and the default DDNM(+), each of these as one sample and as the mean of several, with their own
numbers of steps. The classical methods use the λ or the filter strength that is best on these very images; ours know
nothing but σ. Writes NAME.json and NAME.png after every task.
"""

import time
from typing import Any

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor
from torch.nn.functional import interpolate

from ddpm.common.fidelity import psnr, ssim
from ddpm.model import Model, load
from ddpm.plotting.plots import plot_images
from ddpm.restoration import Task, restore
from ddpm.restoration.job import seen_part
from ddpm.restoration.operator import LinearOperator, SpectralOperator
from ddpm.restoration.posterior import PIXEL_SCALE
from experiments.lib import about, add_folders, command_line, first_images, launch, save_picture, save_result

TV_ITERATIONS = 400
PDHG_STEP = 8**-0.5  # primal and dual step lengths; their product times ‖∇‖² ≤ 8 may not exceed 1

# title, task, and σ in units of images in [0, 1]
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
TV_WEIGHTS = (0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # λ for images in [0, 1]; 0 without noise
NLM_STRENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # h, for images in [0, 1]
COLUMNS = ("original", "input", "pseudo-inverse", "total variation", "a sample", "mean", "deviation")  # of the picture
WHITE = 0.25  # the standard deviation, of images in [0, 1], that the picture shows as white


# classical methods


def total_variation(operator: SpectralOperator, y: Tensor, weight: float) -> Tensor:
    """Minimise ½‖Hx - y‖² + λ TV(x) per image, or TV(x) subject to Hx = y if λ = 0; return (N, C, H, W) in [-1, 1].

    Uses the primal-dual method of Chambolle & Pock 2011, algorithm 1, with the exact proximal map of the data term in
    the spectral coordinates of H. TV is isotropic and couples the channels.

    Args:
        operator: H.
        y: measurements.
        weight: λ, for images in [-1, 1].
    """
    measured, seen, gain = operator.Ut(y), operator.seen, operator.singulars
    x = ahead = operator.Ht(y) / gain.max() ** 2
    dual = torch.zeros_like(gradient(x))
    for _ in range(TV_ITERATIONS):
        dual = dual + PDHG_STEP * gradient(ahead)
        dual = dual / dual.square().sum((0, 2), keepdim=True).sqrt().clamp(min=1)
        target = x - PDHG_STEP * gradient_adjoint(dual)
        coordinates = operator.Vt(target)
        if weight > 0:
            trust = PDHG_STEP / weight * gain
            fitted = (coordinates + trust * measured) / (1 + trust * gain)
        else:
            fitted = operator.inverse_singulars * measured
        previous = x
        x = target + operator.V(torch.where(seen, fitted - coordinates, 0.0))
        ahead = 2 * x - previous
    return x.clamp(-1, 1)


def gradient(x: Tensor) -> Tensor:
    """Differences to the neighbours below and to the right, (2, N, C, H, W); 0 across the border."""
    answer = x.new_zeros(2, *x.shape)
    answer[0, ..., :-1, :] = x.diff(dim=-2)
    answer[1, ..., :-1] = x.diff(dim=-1)
    return answer


def gradient_adjoint(p: Tensor) -> Tensor:
    """∇ᵀ p, (N, C, H, W)."""
    answer = torch.zeros_like(p[0])
    down, right = p[0, ..., :-1, :], p[1, ..., :-1]
    answer[..., :-1, :] -= down
    answer[..., 1:, :] += down
    answer[..., :-1] -= right
    answer[..., 1:] += right
    return answer


def nl_means(images: Tensor, strength: float, sigma: float) -> Tensor:
    """Denoise images (N, C, H, W) in [-1, 1] by scikit-image's non-local means.

    `strength` and `sigma` are in units of images in [0, 1]. Noisy images must not be clipped to [-1, 1]: clipping
    shifts the mean of the noise, and averaging cannot undo that.
    """
    pixels = (images.permute(0, 2, 3, 1).numpy() + 1) / 2
    found = [
        denoise_nl_means(image, patch_size=5, patch_distance=10, h=strength, sigma=sigma, channel_axis=-1)
        for image in pixels
    ]
    return torch.from_numpy(np.stack(found).reshape(pixels.shape)).float().permute(0, 3, 1, 2) * 2 - 1


# the comparison


def measure(operator: LinearOperator, x: Tensor, sigma: float) -> Tensor:
    """y = H x + σ n with a fixed seed for n; lost pixels are 0."""
    y = operator.H(x)
    y = y + PIXEL_SCALE * sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return seen_part(operator, y)


def figures(images: Tensor, originals: Tensor) -> dict[str, float]:
    """Mean PSNR (dB) with its standard error, and mean SSIM."""
    images = images.clamp(-1, 1)
    each = psnr(images, originals)
    return {
        "psnr": round(float(each.mean()), 2),
        "standard_error": round(float(each.std() / len(each) ** 0.5), 2),
        "ssim": round(float(ssim(images, originals).mean()), 3),
    }


def best(candidates: dict[float | str, Tensor], originals: Tensor) -> tuple[dict[str, float | str], Tensor]:
    """Figures and parameter of the candidate with the highest PSNR, and its images."""
    found = {parameter: figures(images, originals) for parameter, images in candidates.items()}
    parameter = max(found, key=lambda key: found[key]["psnr"])
    return {**found[parameter], "parameter": parameter}, candidates[parameter]


def run_row(
    model: Model, title: str, task: Task, sigma: float, x: Tensor, samples: int
) -> tuple[dict[str, Any], Tensor]:
    """Row of the table, and the picture's COLUMNS of every image, (N, 7, C, H, W), the last three by DDNM(+)."""
    operator = task.operator(tuple(x.shape[1:])).to(model.device)
    y = measure(operator, x.to(model.device), sigma)
    inverse = operator.H_pinv(y).cpu()
    shown = interpolate(y, size=x.shape[-2:], mode="nearest-exact").expand_as(x).cpu()
    row: dict[str, Any] = {
        "task": title,
        "sigma": sigma,
        "input": figures(shown, x),
        "pseudo-inverse": figures(inverse, x),
    }
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
        row[f"{name}, one sample"] = figures(restored.samples[:, 0], x)
        row[f"{name}, mean of {samples}"] = figures(restored.mean, x)
    print(f"{title:22}" + "  ".join(f"{key}: {v['psnr']}" for key, v in row.items() if isinstance(v, dict)), flush=True)
    strip = [x, shown, inverse, classical, ddnm.samples[:, 0], ddnm.mean, 2 / WHITE * ddnm.std - 1]
    return row, torch.stack([part.clamp(-1, 1) for part in strip], dim=1)


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="digits", help="model to restore with (default: digits)")
    parser.add_argument("--data", default="mnist:test", help="SOURCE of the test images (default: mnist:test)")
    parser.add_argument("--images", type=int, default=100, help="test images (default: 100)")
    parser.add_argument("--samples", type=int, default=4, help="samples to average (default: 4)")
    parser.add_argument("--name", default="restoration_digits", help="name of the JSON file and of the picture")
    add_folders(parser, pictures=True)
    options = parser.parse_args()
    model = load(options.model)
    x, _ = first_images(model, options.data, options.images)
    began = time.monotonic()
    result = {"model": options.model, "weights": model.weights_hash, "data": options.data}
    result |= {"images": options.images, "samples": options.samples, **about()}
    rows, strips = [], []
    for task in ROWS:
        row, strip = run_row(model, *task, x, options.samples)
        rows.append(row)
        strips.append(strip[len(strips) % len(strip)])  # a different image in every row
        result |= {"seconds": round(time.monotonic() - began), "rows": rows}
        save_result(options.name, result, options.out)  # also what a killed call leaves
        drawn = plot_images(torch.stack(strips), columns=COLUMNS, rows=[row["task"] for row in rows])
        save_picture(drawn, options.pictures / f"{options.name}.png")


if __name__ == "__main__":
    launch(main)
