"""Compare the samples of each restoration method with the exact posterior, known for Gaussian images.

    python -m experiments.restoration.gaussian

`bias`: root mean square error of the samples' mean, in units of the exact posterior's standard deviation; `spread`:
total variance of the samples relative to the exact one; `covariance`: relative error of the covariance in the Frobenius
norm. The row "exact" takes as many samples from the posterior itself, and shows the sampling error of the figures.
Writes restoration_gaussian.json.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.restoration import operators as kernels
from ddpm.restoration.methods import METHODS
from ddpm.restoration.operator import LinearOperator
from ddpm.restoration.operators import CircularBlur, Denoising, Inpainting, WalshHadamard, superresolution
from ddpm.restoration.posterior import PIXEL_SCALE
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.grid import timestep_grid
from experiments.lib import about, add_folders, command_line, launch, save_result

SHAPE = (1, 8, 8)
SIGMAS = (0.0, 0.1, 0.25, 0.5)  # in units of images in [0, 1]


@dataclass(frozen=True)
class GaussianPrior:
    """Gaussian distribution of images, whose denoiser and posterior are known in closed form.

    x ~ N(mean, covariance): `mean` (C, H, W), `covariance` (n, n) of the flattened image with n = CHW, both float64.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def smooth(cls, shape: tuple[int, int, int], deviation: float = 0.5, reach: float = 2.0) -> "GaussianPrior":
        """Prior with a vertical ramp as its mean.

        Pixels at distance `reach` correlate by exp(-1/2), and channels by 1/2.
        """
        channels, height, width = shape
        place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).reshape(-1, 2)
        distance = torch.cdist(place.double(), place.double())
        plane = torch.exp(-0.5 * (distance / reach) ** 2)
        between = torch.full((channels, channels), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
        covariance = deviation**2 * torch.kron(between, plane)
        covariance += 1e-3 * deviation**2 * torch.eye(len(covariance))
        ramp = torch.linspace(-0.5, 0.5, height, dtype=torch.float64)[:, None].expand(shape)
        return cls(ramp.clone(), covariance)

    def denoiser(self, schedule: NoiseSchedule | None = None) -> Denoiser:
        """Exact denoiser, without clipping; the default schedule is linear with T = 1000.

        E[x_0|x_t] = μ + √ᾱ C (ᾱ C + (1-ᾱ))⁻¹ (x_t - √ᾱ μ), computed in the eigenvectors of the covariance C.
        """
        process = GaussianDiffusion(schedule or NoiseSchedule(make_betas("linear", 1000)), prediction="x_0")
        eigenvalues, basis = torch.linalg.eigh(self.covariance)
        eigenvalues, basis, mean = eigenvalues.clamp(min=0).float(), basis.float(), self.mean.float()

        def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            signal, sigma = process.schedule.alpha_sigma(float(t[0]))
            gain = signal * eigenvalues / (signal**2 * eigenvalues + sigma**2)
            centred = (x_t - signal * mean).flatten(1)
            return mean + ((centred @ basis * gain) @ basis.T).unflatten(1, mean.shape)

        return Denoiser(network, process, clip=None)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Samples of the prior, float32 (count, C, H, W)."""
        return sample_gaussian(self.mean.flatten(), self.covariance, count, seed).unflatten(1, self.mean.shape).float()

    def posterior(self, matrix: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean (n,) and covariance (n, n) of x given y = matrix x + σ n, with y (m,) and matrix (m, n)."""
        of_y = matrix @ self.covariance @ matrix.T + sigma**2 * torch.eye(len(matrix))  # singular if pixels are lost
        gain_t = torch.linalg.pinv(of_y, hermitian=True) @ matrix @ self.covariance
        mean = self.mean.flatten() + gain_t.T @ (y - matrix @ self.mean.flatten())
        return mean, self.covariance - gain_t.T @ matrix @ self.covariance


def sample_gaussian(mean: Tensor, covariance: Tensor, count: int, seed: int = 0) -> Tensor:
    """Samples of N(mean, covariance), float64 (count, n)."""
    eigenvalues, basis = torch.linalg.eigh(covariance)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    return mean + (white * eigenvalues.clamp(min=0).sqrt()) @ basis.T


def problems() -> dict[str, LinearOperator]:
    """Operators H of the measurements, by title."""
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


CONTESTANTS: dict[str, tuple[str, int, dict[str, int]]] = {  # title: (method, steps, options)
    "DDRM, 20 steps": ("ddrm", 20, {}),
    "DDRM, 100 steps": ("ddrm", 100, {}),
    "DDNM(+), 100 steps": ("ddnm", 100, {}),
    "DDNM(+), 100 steps, travel 10×3": ("ddnm", 100, {"travel_length": 10, "travel_repeats": 3}),
    "RePaint, 250 steps, jumps 10×10": ("repaint", 250, {}),
    "DPS, 1000 steps": ("dps", 1000, {}),
}


def as_matrix(operator: LinearOperator) -> Tensor:
    """Matrix (m, n) of an operator, float64."""
    n = operator.image_shape[0] * operator.image_shape[1] * operator.image_shape[2]
    return operator.H(torch.eye(n).reshape(n, *operator.image_shape)).flatten(1).T.double()


def deviations(samples: Tensor, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """Deviations of samples (N, n) from N(mean, covariance): `bias`, `spread` and `covariance`, as described above."""
    total = float(covariance.trace())
    centred = samples - samples.mean(0)
    found = centred.T @ centred / (len(samples) - 1)
    return {
        "bias": float((samples.mean(0) - mean).square().sum().div(total).sqrt()),
        "spread": float(found.trace()) / total,
        "covariance": float((found - covariance).norm() / covariance.norm()),
    }


def compare(count: int) -> list[dict[str, float | str]]:
    """Deviations of `count` samples of every method on every problem, a row each."""
    prior = GaussianPrior.smooth(SHAPE)
    denoiser = prior.denoiser()
    truth = prior.sample(1, seed=7)
    rows: list[dict[str, float | str]] = []
    for problem, operator in problems().items():
        for sigma in SIGMAS:
            if sigma == 0 and bool(operator.seen.all()):
                continue  # without noise, an invertible H leaves nothing to sample
            scaled = PIXEL_SCALE * sigma
            generator = torch.Generator().manual_seed(3)
            clean = operator.H(truth)
            y = clean + scaled * torch.randn(clean.shape, generator=generator)
            mean, covariance = prior.posterior(as_matrix(operator), y.flatten().double(), scaled)
            exact = deviations(sample_gaussian(mean, covariance, count), mean, covariance)
            rows.append({"problem": problem, "sigma": sigma, "method": "exact", **exact})
            for title, (name, steps, options) in CONTESTANTS.items():
                method = METHODS[name]
                needed = method.noiseless if sigma == 0 else method.noisy
                if needed is None or (name != "dps" and not isinstance(operator, needed)):
                    continue
                noise_generator = torch.Generator().manual_seed(11)
                samples = method.run(
                    denoiser,
                    y.expand(count, *y.shape[1:]),
                    operator,
                    scaled,
                    timestep_grid(denoiser.schedule, steps),
                    noise=lambda g=noise_generator: torch.randn(count, *SHAPE, generator=g),
                    **options,
                )
                found = deviations(samples.flatten(1).double(), mean, covariance)
                rows.append({"problem": problem, "sigma": sigma, "method": title, **found})
                print(f"{problem:25} {sigma:5} {title:35} " + "  ".join(f"{k} {v:7.3f}" for k, v in found.items()))
    return rows


def main() -> None:
    """Parse the command line and compare."""
    parser = command_line(__doc__)
    parser.add_argument("--count", type=int, default=2000, help="samples of each posterior (default: 2000)")
    add_folders(parser)
    options = parser.parse_args()
    result = {**about(), "samples": options.count, "image": SHAPE, "rows": compare(options.count)}
    print(save_result("restoration_gaussian", result, options.out))


if __name__ == "__main__":
    launch(main)
