"""Seconds that our DDRM and deepinv's take, with the same denoiser, measurements, noise levels and evaluations.

    python -m experiments.restoration_speed        writes experiments/results/restoration_speed.json

100 of MNIST's test digits, half of the pixels lost, σ = 0.1; 20 evaluations of the bundled model an image. The two
take turns, and the ratio is taken within a turn, so that whatever else the machine does falls on both. PSNR says that
they do the same work: deepinv's is the higher, because it divides the noise of every step by √2 (see the docs).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import deepinv
import numpy as np
import torch
from torch import Tensor

import ddpm
from ddpm.common.fidelity import psnr
from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.restoration import from_deepinv, from_deepinv_measurement
from ddpm.restoration.deepinv import denoiser_as_deepinv
from ddpm.restoration.methods import ddrm
from ddpm.restoration.posterior import PIXEL_SCALE
from ddpm.samplers.grid import timestep_grid
from experiments.record import machine, save_result

LOST, SIGMA, STEPS = 0.5, 0.1, 20
BATCH = 50  # images a forward pass


def timed(action: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    found = action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def contestants(model: ddpm.Model, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each restores the same measurements of x (N, C, H, W) in [-1, 1], and answers in [-1, 1]."""
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="restoration_speed", help="of the result")
    arguments = parser.parse_args()
    model = ddpm.load("digits")
    data = open_dataset("mnist:test", image_size=model.image_shape[1:], channels=1, labels=False)
    x = to_float(data.batch(list(range(arguments.images)))[0]).to(model.device)
    runners = contestants(model, x)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    quality = {}
    for turn in range(arguments.rounds + 1):
        for name, restore in runners.items():
            taken, found = timed(restore, model.device)
            quality[name] = round(float(psnr(found.clamp(-1, 1), x).mean()), 2)
            if turn > 0:  # the first turn warms up
                seconds[name].append(round(taken, 4))
        print(f"turn {turn} of {arguments.rounds}: {seconds}", flush=True)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["deepinv"], strict=True)]
    print(f"times as fast as deepinv: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    result = {
        "command": f"python -m experiments.restoration_speed --images {arguments.images} --rounds {arguments.rounds}",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "deepinv": deepinv.__version__,
        "images": arguments.images,
        "evaluations": STEPS,
        "seconds": seconds,
        "times_as_fast": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "psnr": quality,
    }
    print(save_result(arguments.name, result))


if __name__ == "__main__":
    main()
