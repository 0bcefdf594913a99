"""Gaussian images: the one prior for which denoiser and posterior are known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.samplers.denoiser import Denoiser


@dataclass(frozen=True)
class GaussianPrior:
    """x ~ N(mean, covariance): `mean` (C, H, W), `covariance` (n, n) on the flattened image, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def smooth(cls, shape: tuple[int, int, int], deviation: float = 0.5, reach: float = 2.0) -> "GaussianPrior":
        """A shaded mean; neighbours `reach` pixels apart correlate by exp(-1/2), channels by a half."""
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
        """E[x_0|x_t] = μ + √ᾱ C (ᾱ C + (1-ᾱ))⁻¹ (x_t - √ᾱ μ), by the eigenvectors of C; nothing is clipped."""
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
        """(count, C, H, W), float32."""
        return draw(self.mean.flatten(), self.covariance, count, seed).unflatten(1, self.mean.shape).float()

    def posterior(self, matrix: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean (n,) and covariance (n, n) of x given y (m,) = matrix x + σ n."""
        gain_t = torch.linalg.lstsq(
            matrix @ self.covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)), matrix @ self.covariance
        ).solution
        mean = self.mean.flatten() + gain_t.T @ (y - matrix @ self.mean.flatten())
        return mean, self.covariance - gain_t.T @ matrix @ self.covariance


def draw(mean: Tensor, covariance: Tensor, count: int, seed: int = 0) -> Tensor:
    """(count, n) samples of N(mean, covariance), float64."""
    eigenvalues, basis = torch.linalg.eigh(covariance)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    return mean + (white * eigenvalues.clamp(min=0).sqrt()) @ basis.T
