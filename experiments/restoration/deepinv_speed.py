"""Compare the speed of our DDRM with that of deepinv, with the same denoiser, measurements, noise levels and steps.

    python -m experiments.restoration.deepinv_speed

Restores 100 of MNIST's test digits with half of the pixels lost and σ = 0.1, by 20 evaluations of the bundled model per
image. The two take turns, and the ratio is taken within a turn, so that other load on the machine slows both alike.
PSNR shows that they do the same work. deepinv's is higher, because it divides the noise of every step by √2 (see
docs/guides/restoration.md). Writes restoration_speed.json.
"""

import statistics
import time
from collections.abc import Callable

import deepinv
import numpy as np
import torch
from torch import Tensor

from ddpm.common.fidelity import psnr
from ddpm.model import Model, load
from ddpm.restoration import from_deepinv, from_deepinv_measurement
from ddpm.restoration.deepinv import denoiser_as_deepinv
from ddpm.restoration.methods import ddrm
from ddpm.restoration.posterior import PIXEL_SCALE
from ddpm.samplers.grid import timestep_grid
from experiments.lib import about, add_folders, command_line, first_images, launch, save_result

LOST, SIGMA, STEPS = 0.5, 0.1, 20
BATCH = 50  # images per forward pass


def timed(action: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds that the action takes, and its result."""
    began = time.perf_counter()
    found = action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def contestants(model: Model, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Functions that restore the same measurements of x (N, C, H, W), and return images; all in [-1, 1]."""
    torch.manual_seed(0)
    shape, device = model.image_shape, model.device
    known = (torch.rand(1, *shape[1:]) >= LOST).float().to(device)
    noise = deepinv.physics.GaussianNoise(SIGMA)
    physics = deepinv.physics.Inpainting(img_size=shape, mask=known, noise_model=noise, device=device)
    y = physics((x + 1) / 2)
    denoiser = model.denoiser(batch_size=BATCH)
    grid = timestep_grid(denoiser.schedule, STEPS)
    levels = [sigma / signal / PIXEL_SCALE for signal, sigma in map(denoiser.schedule.alpha_sigma, grid)]
    theirs = deepinv.sampling.DDRM(denoiser_as_deepinv(denoiser), sigmas=np.array(levels))
    operator = from_deepinv(physics, shape).to(device)
    measured = from_deepinv_measurement(operator, y)

    def ours() -> Tensor:
        return ddrm(denoiser, measured, operator, PIXEL_SCALE * SIGMA, grid, noise=lambda: torch.randn_like(x))

    return {"ours": ours, "deepinv": lambda: 2 * theirs(y, physics) - 1}


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=100, help="test images to restore (default: 100)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of turns (default: 5)")
    add_folders(parser)
    options = parser.parse_args()
    model = load("digits")
    x = first_images(model, "mnist:test", options.images)[0].to(model.device)
    runners = contestants(model, x)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    quality = {}
    for number in range(options.rounds + 1):
        for name, restore in runners.items():
            taken, found = timed(restore, model.device)
            quality[name] = round(float(psnr(found.clamp(-1, 1), x).mean()), 2)
            if number > 0:  # the first round warms up
                seconds[name].append(round(taken, 4))
        print(f"round {number} of {options.rounds}: {seconds}", flush=True)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["deepinv"], strict=True)]
    result = {
        **about(),
        "threads": torch.get_num_threads(),
        "deepinv": deepinv.__version__,
        "images": options.images,
        "evaluations": STEPS,
        "seconds": seconds,
        "times_as_fast": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "psnr": quality,
    }
    print(f"speed relative to deepinv: {result['times_as_fast']}")
    print(save_result("restoration_speed", result, options.out))


if __name__ == "__main__":
    launch(main)
