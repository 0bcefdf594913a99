"""Noise schedules: β_t in float64 and everything that follows from it.

Time t counts the indices of `betas`: t = 0 is the least noisy step, t = T-1 the noisiest, and t = -1 is the data
itself (ᾱ = 1). Fractional t interpolates log ᾱ linearly, as DPM-Solver does (Lu et al. 2022, appendix D.4).
"""

import math
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.names import ScheduleName

# replaces log ᾱ = -inf for interpolation; made lower if needed, to be below all finite values
LOG_ALPHA_BAR_FLOOR = math.log(1e-20)


def make_betas(name: ScheduleName, timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Return β_0 … β_{T-1} of a named schedule, float64 (T,).

    linear, quadratic, constant: Ho et al. 2020 (`quadratic` is linear in √β, Diffusers' `scaled_linear`; `constant`
    is `beta_end` throughout). sigmoid: β rises from `beta_start` to `beta_end` along a logistic curve over [-6, 6].
    cosine: Nichol & Dhariwal 2021, eq. 17, with β clipped at 0.999; it ignores `beta_start` and `beta_end`.
    """
    match name:
        case "linear":
            return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        case "quadratic":
            return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
        case "constant":
            return torch.full((timesteps,), beta_end, dtype=torch.float64)
        case "sigmoid":
            ramp = torch.sigmoid(torch.linspace(-6, 6, timesteps, dtype=torch.float64))
            return beta_start + (beta_end - beta_start) * ramp
        case "cosine":
            edges = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
            f = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - f[1:] / f[:-1]).clamp(max=0.999)
    raise UserError(f"no schedule named {name!r}; there are {', '.join(get_args(ScheduleName))}")


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale √ᾱ so that its last value is 0 and its first is kept (Lin et al. 2024, algorithm 1)."""
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root**2
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return 1 - alphas


class NoiseSchedule:
    """β_t and everything that follows from it, float64 on the CPU; cast it at the point of use.

    Attributes (each (T,)): `betas`, `alphas_cumprod` (ᾱ_t), `alphas_cumprod_prev` (ᾱ_{t-1}, ᾱ_{-1} = 1),
    `posterior_variance` (β̃_t, eq. 7), `posterior_log_variance` (index 0 takes index 1's value, since β̃_0 = 0).
    """

    def __init__(self, betas: Tensor):
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError("betas must be a list of at least two numbers in (0, 1]")
        self.betas = betas
        self.alphas_cumprod = (1 - betas).cumprod(0)
        if self.alphas_cumprod[-2] <= 0 < self.alphas_cumprod[0]:  # betas that start at 1 are allowed: regression
            first = int((self.alphas_cumprod <= 0).nonzero()[0])
            raise UserError(
                f"these betas leave nothing of the image from timestep {first} of {len(betas)} on; only the "
                "last may be pure noise: choose smaller betas or fewer timesteps"
            )
        self.alphas_cumprod_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        self.posterior_variance = betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        self.posterior_log_variance = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_{T-1} is pure noise (ᾱ = 0)."""
        return bool(self.alphas_cumprod[-1] <= 0)

    @cached_property
    def _log_alpha_bar(self) -> np.ndarray:
        """log ᾱ at t = -1, 0, …, T-1, with a finite number for ᾱ = 0 (zero terminal SNR)."""
        with np.errstate(divide="ignore"):
            values = np.log(np.concatenate([[1.0], self.alphas_cumprod.numpy()]))
        finite = np.isfinite(values)
        return np.where(finite, values, min(LOG_ALPHA_BAR_FLOOR, values[finite].min() - 1))

    def alpha_bar(self, t: float) -> float:
        """Return ᾱ_t for any t in [-1, T-1]; UserError outside."""
        if not -1 <= t <= self.timesteps - 1:
            raise UserError(f"timestep {t} is outside [-1, {self.timesteps - 1}]")
        if t == int(t):
            return 1.0 if t < 0 else float(self.alphas_cumprod[int(t)])
        return float(np.exp(np.interp(t, np.arange(-1, self.timesteps), self._log_alpha_bar)))

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Return (√ᾱ_t, √(1-ᾱ_t)): x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (eq. 4), for any t in [-1, T-1]."""
        alpha_bar = self.alpha_bar(t)
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def log_snr(self, t: float) -> float:
        """Return log(ᾱ_t / (1-ᾱ_t)), twice DPM-Solver's λ_t; +inf for the data, -inf for pure noise."""
        alpha_bar = self.alpha_bar(t)
        if alpha_bar >= 1:
            return math.inf
        return math.log(alpha_bar / (1 - alpha_bar)) if alpha_bar > 0 else -math.inf

    def t_from_log_snr(self, log_snr: float) -> float:
        """Return the (fractional) t with this log-SNR: the inverse of `log_snr`, clamped to [-1, T-1]."""
        log_alpha_bar = -np.logaddexp(0.0, -log_snr)
        return float(np.interp(-log_alpha_bar, -self._log_alpha_bar, np.arange(-1, self.timesteps)))
