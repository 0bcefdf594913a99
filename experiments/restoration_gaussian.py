"""How far each restoration method's samples are from the exact posterior, on Gaussian images, where it is known.

    python -m experiments.restoration_gaussian        writes experiments/results/restoration_gaussian.json

`bias`: root mean square of the samples' mean about the exact one, in units of the exact posterior's deviation;
`spread`: the samples' total variance over the exact one; `covariance`: relative Frobenius error. The row "exact"
draws as many samples from the posterior itself: what it shows is the sampling error of the figures.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.restoration import operators as kernels
from ddpm.restoration.methods import METHODS
from ddpm.restoration.operator import LinearOperator
from ddpm.restoration.operators import CircularBlur, Denoising, Inpainting, WalshHadamard, superresolution
from ddpm.samplers.grid import timestep_grid
from experiments.gaussian_prior import GaussianPrior, draw
from experiments.record import machine, save_result

SHAPE = (1, 8, 8)
SIGMAS = (0.0, 0.1, 0.25, 0.5)  # in units of the [0, 1] image


def problems() -> dict[str, LinearOperator]:
    left = torch.zeros(SHAPE[1:], dtype=torch.bool)
    left[:, :4] = True
    return {
        "denoising": Denoising(SHAPE),
        "inpainting, half": Inpainting(SHAPE, left),
        "inpainting, 75% lost": Inpainting.random(SHAPE, 0.75, seed=1),
        "super-resolution 2×": superresolution(SHAPE, 2),
        "super-resolution 4×": superresolution(SHAPE, 4),
        "deblurring": CircularBlur(SHAPE, torch.outer(*[kernels.gaussian(1.0)] * 2)),
        "compressed sensing, 25%": WalshHadamard(SHAPE, 16),
    }


def contestants(steps: Callable[[int], int]) -> dict[str, tuple[str, int, dict]]:
    """Label -> (method, steps, options)."""
    return {
        "DDRM, 20 steps": ("ddrm", 20, {}),
        "DDRM, 100 steps": ("ddrm", steps(100), {}),
        "DDNM(+), 100 steps": ("ddnm", steps(100), {}),
        "DDNM(+), 100 steps, travel 10×3": ("ddnm", steps(100), {"travel_length": 10, "travel_repeats": 3}),
        "RePaint, 250 steps, jumps 10×10": ("repaint", steps(250), {}),
        "DPS, 1000 steps": ("dps", steps(1000), {}),
    }


def as_matrix(operator: LinearOperator) -> Tensor:
    n = operator.image_shape[0] * operator.image_shape[1] * operator.image_shape[2]
    return operator.H(torch.eye(n).reshape(n, *operator.image_shape)).flatten(1).T.double()


def deviations(samples: Tensor, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """How samples (N, n) differ from N(mean, covariance)."""
    total = float(covariance.trace())
    centred = samples - samples.mean(0)
    found = centred.T @ centred / (len(samples) - 1)
    return {
        "bias": float((samples.mean(0) - mean).square().sum().div(total).sqrt()),
        "spread": float(found.trace()) / total,
        "covariance": float((found - covariance).norm() / covariance.norm()),
    }


def run(count: int, steps: Callable[[int], int] = lambda full: full) -> dict:
    prior = GaussianPrior.smooth(SHAPE)
    denoiser = prior.denoiser()
    truth = prior.sample(1, seed=7)
    rows = []
    for problem, operator in problems().items():
        for sigma in SIGMAS:
            if sigma == 0 and bool(operator.seen.all()):
                continue  # without noise an invertible H leaves nothing to draw
            generator = torch.Generator().manual_seed(3)
            clean = operator.H(truth)
            y = clean + 2 * sigma * torch.randn(clean.shape, generator=generator)
            mean, covariance = prior.posterior(as_matrix(operator), y.flatten().double(), 2 * sigma)
            exact = deviations(draw(mean, covariance, count), mean, covariance)
            rows.append({"problem": problem, "sigma": sigma, "method": "exact", **exact})
            for label, (name, number, options) in contestants(steps).items():
                method = METHODS[name]
                needed = method.noiseless if sigma == 0 else method.noisy
                if needed is None or (name != "dps" and not isinstance(operator, needed)):
                    continue
                noise_generator = torch.Generator().manual_seed(11)
                samples = method.run(
                    denoiser,
                    y.expand(count, *y.shape[1:]),
                    operator,
                    2 * sigma,
                    timestep_grid(denoiser.schedule, number),
                    noise=lambda g=noise_generator: torch.randn(count, *SHAPE, generator=g),
                    **options,
                )
                found = deviations(samples.flatten(1).double(), mean, covariance)
                rows.append({"problem": problem, "sigma": sigma, "method": label, **found})
                print(f"{problem:25} {sigma:5} {label:35} " + "  ".join(f"{k} {v:7.3f}" for k, v in found.items()))
    return {"samples": count, "image": SHAPE, "rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="samples of each posterior")
    parser.add_argument("--name", default="restoration_gaussian", help="of the result")
    arguments = parser.parse_args()
    print(save_result(arguments.name, {"machine": machine(), **run(arguments.count)}))
