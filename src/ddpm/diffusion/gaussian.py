"""The Gaussian diffusion process: q(x_t|x_0), the posterior q(x_{t-1}|x_t, x_0), and what a network may predict.

Images are float tensors (N, C, H, W) in [-1, 1]. A timestep `t` is one number for the whole batch, or an integer
tensor (N,) with one timestep per image; -1 is the data.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.names import PredictionName, VarianceName
from ddpm.diffusion.schedule import NoiseSchedule


class TimestepTable:
    """Columns of float64 coefficients, one row per timestep.

    Calling it with `t`, integers (N,) in 0..T-1 (-1 is the last row), gives one (N, 1, ..., 1) tensor per column in
    `like`'s dtype, device and number of axes. The rounded table is kept on each device, so that a look-up is one gather
    and never makes a GPU wait for the host.
    """

    def __init__(self, *columns: Tensor):
        self.rows = torch.stack(columns, dim=1)
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, t: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        where = like.device, like.dtype
        if where not in self._placed:
            # Rounded on the CPU: some devices have no float64.
            self._placed[where] = self.rows.to(like.dtype).to(like.device)
        rows = self._placed[where][t.to(like.device)]
        return rows.reshape(len(t), -1, *[1] * (like.ndim - 1)).unbind(1)


Timestep = float | Tensor


@dataclass(frozen=True)
class GaussianDiffusion:
    """A noise schedule together with what the network predicts and which variance the reverse process has.

    `prediction`: "epsilon" (Ho et al. 2020), "x_0", or "v" = √ᾱ ε - √(1-ᾱ) x_0 (Salimans & Ho 2022).
    `variance`: "fixed_small" (β̃_t), "fixed_large" (β_t), or "learned_range": the network's second half of channels
    interpolates log β̃_t and log β_t (Nichol & Dhariwal 2021, eq. 15).
    """

    schedule: NoiseSchedule
    prediction: PredictionName = "epsilon"
    variance: VarianceName = "fixed_small"

    def __post_init__(self):
        if self.prediction == "epsilon" and self.schedule.zero_terminal_snr:
            raise UserError(
                "a zero-terminal-SNR schedule cannot predict epsilon: at T x_t is pure noise, so epsilon does not "
                "determine x_0; use prediction v or x_0"
            )

    @property
    def learns_variance(self) -> bool:
        """Whether the network has twice as many output channels as the image, the second half for the variance."""
        return self.variance == "learned_range"

    @cached_property
    def log_variance(self) -> Tensor:
        """log Σ_t of the reverse process at each timestep, float64 (T,); log β̃, the lower end, if it is learned.

        Index 0 takes index 1's β̃, since β̃_0 = 0; `fixed_large` is the log of [β̃_1, β_1, β_2, ...] as in Ho et al.
        """
        smallest = self.schedule.posterior_log_variance
        if self.variance == "fixed_large":
            return torch.cat([smallest[:1], self.schedule.betas[1:].log()])
        return smallest

    @cached_property
    def _alpha_sigma_table(self) -> TimestepTable:
        alphas_cumprod = torch.cat([self.schedule.alphas_cumprod, torch.ones(1, dtype=torch.float64)])
        return TimestepTable(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())  # the last row, -1, is the data

    def alpha_sigma(self, t: Timestep, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return (√ᾱ_t, √(1-ᾱ_t)): floats for one t, or (N, 1, 1, 1) in `like`'s dtype and device for a tensor t."""
        if not isinstance(t, Tensor):
            return self.schedule.alpha_sigma(t)
        alpha, sigma = self._alpha_sigma_table(t, like)
        return alpha, sigma

    def q_sample(self, x_0: Tensor, t: Timestep, noise: Tensor) -> Tensor:
        """Return x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (eq. 4)."""
        alpha, sigma = self.alpha_sigma(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(self, x_0: Tensor, t: Timestep, noise: Tensor) -> Tensor:
        """Return the training target of the network for q_sample(x_0, t, noise)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x_0":
            return x_0
        alpha, sigma = self.alpha_sigma(t, x_0)
        return alpha * noise - sigma * x_0

    def predicted_x_0(self, output: Tensor, x_t: Tensor, t: Timestep) -> Tensor:
        """Return x_0 from the output of the network (its mean part, as many channels as x_t)."""
        if self.prediction == "x_0":
            return output
        alpha, sigma = self.alpha_sigma(t, x_t)
        if self.prediction == "v":
            return alpha * x_t - sigma * output
        return (x_t - sigma * output) / alpha

    def epsilon_from_x_0(self, x_0: Tensor, x_t: Tensor, t: Timestep) -> Tensor:
        """Return the ε for which x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        return (x_t - alpha * x_0) / sigma

    def posterior(self, t: float, t_prev: float) -> "Posterior":
        """Return q(x_{t_prev} | x_t, x_0) for any t > t_prev ≥ -1; neighbouring steps give eq. 6 and 7."""
        return Posterior(self.schedule.alpha_bar(t), self.schedule.alpha_bar(t_prev))


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) for s < t, from ᾱ_t and ᾱ_s; a strided chain is a chain with β = 1 - ᾱ_t/ᾱ_s."""

    alpha_bar: float
    alpha_bar_prev: float

    @property
    def beta(self) -> float:
        """β of the step from s to t: the variance of `fixed_large`."""
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @property
    def variance(self) -> float:
        """β̃ (eq. 7): the variance of `fixed_small`; 0 if s is the data."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """Return μ̃ (eq. 7)."""
        x_0_weight = math.sqrt(self.alpha_bar_prev) * self.beta / (1 - self.alpha_bar)
        x_t_weight = math.sqrt(1 - self.beta) * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        return x_0_weight * x_0 + x_t_weight * x_t
