"""Denoising diffusion restoration models (Kawar, Elad, Ermon & Song 2022)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.restoration.operator import SpectralOperator
from ddpm.samplers.denoiser import Denoiser, Prediction
from ddpm.samplers.step import Callback, Noise, Step


@torch.no_grad()
def ddrm(
    denoiser: Denoiser,
    y: Tensor,
    operator: SpectralOperator,
    sigma_y: float,
    timesteps: Sequence[float],
    *,
    noise: Noise,
    callback: Callback | None = None,
    eta: float = 0.85,
    eta_b: float = 1.0,
) -> Tensor:
    """Draw x_0 (N, C, H, W) given y = H x + σ_y n; one network evaluation a step, 20 steps are enough.

    Args:
        y: (N, *measurement_shape).
        sigma_y: the noise of y, in y's units (images span 2).
        timesteps: strictly falling, the last -1.
        noise: standard normal (N, C, H, W), once at the start and once a step but the last.
        eta, eta_b: the paper's η and η_b (eq. 8); 0.85 and 1 are its choice.
    """
    check_share("eta", eta)
    check_share("eta_b", eta_b)
    schedule, steps = denoiser.schedule, len(timesteps) - 1
    evidence = Evidence(operator, y, sigma_y)
    x_t = evidence.start(*schedule.signal_noise(timesteps[0]), noise())
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        prediction = denoiser(x_t, t)
        fresh = noise() if t_prev >= 0 else None
        x_prev = evidence.step(prediction, *schedule.signal_noise(t_prev), fresh, eta, eta_b)
        if callback:
            callback(Step(i, steps, t, t_prev, x_t, prediction.x_0, x_prev))
        x_t = x_prev
    return x_t


def check_share(name: str, value: float) -> None:
    """Refuse an η that is no share of a step's noise."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie between 0 and 1, not at {value}")


class Evidence:
    """What y says of x in H's spectral coordinates, where every direction is a scalar problem.

    ȳ = Σ⁺Uᵀy is x̄ with noise of deviation σ_y/s. While x_t is noisier than that, ȳ tells more than x̂_0 and replaces
    it; afterwards x̂_0 is pulled towards ȳ; what H does not see is sampled as by DDIM. The paper's σ_t is √((1-ᾱ)/ᾱ)
    here and its x is x_t/√ᾱ; its equations are multiplied through by √ᾱ, so that a schedule may end at ᾱ = 0.
    """

    def __init__(self, operator: SpectralOperator, y: Tensor, sigma_y: float):
        self.operator, self.seen = operator, operator.seen
        self.y_bar = operator.inverse_singulars * operator.Ut(y)
        self.sigma_bar = sigma_y * operator.inverse_singulars

    def start(self, signal: float, sigma: float, noise: Tensor) -> Tensor:
        """x_T: ȳ with as much noise as it lacks, pure noise where ȳ has more or is not known (eq. 7)."""
        told = self.seen & (signal * self.sigma_bar <= sigma)
        lacking = (sigma**2 - (signal * self.sigma_bar) ** 2).clamp(min=0).sqrt()
        bar = self.operator.Vt(noise)
        return sigma * noise + self.operator.V(torch.where(told, signal * self.y_bar + (lacking - sigma) * bar, 0.0))

    def step(
        self, prediction: Prediction, signal: float, sigma: float, noise: Tensor | None, eta: float, eta_b: float
    ) -> Tensor:
        """x_prev = √ᾱ x + √(1-ᾱ) …, (signal, sigma) = (√ᾱ, √(1-ᾱ)) of x_prev; `noise` None at the data (eq. 8)."""
        z = torch.zeros_like(prediction.x_0) if noise is None else noise
        root = (1 - eta**2) ** 0.5
        unseen = signal * prediction.x_0 + sigma * (root * prediction.epsilon + eta * z)

        x_0, z = self.operator.Vt(prediction.x_0), self.operator.Vt(z)
        known_noise = signal * self.sigma_bar
        pull = sigma * root / known_noise.clamp(min=1e-30)
        noisier = signal * torch.lerp(x_0, self.y_bar, pull) + eta * sigma * z  # ȳ is noisier than x_prev may be
        lacking = (sigma**2 - (eta_b * known_noise) ** 2).clamp(min=0).sqrt()
        trusted = signal * torch.lerp(x_0, self.y_bar, eta_b) + lacking * z
        measured = torch.where(known_noise > sigma, noisier, trusted)
        return unseen + self.operator.V(torch.where(self.seen, measured - self.operator.Vt(unseen), 0.0))
