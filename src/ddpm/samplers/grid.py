"""The timesteps of a sampler: S+1 numbers for S steps, the last of them -1, the data."""

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from ddpm.common.errors import UserError
from ddpm.common.names import Spacing
from ddpm.diffusion.schedule import NoiseSchedule

LEAST_LOG_SNR = -2 * math.log(80)


def timestep_grid(schedule: NoiseSchedule, steps: int, spacing: Spacing = "trailing") -> list[float]:
    """Return S+1 strictly falling timesteps for exactly S steps, 1 ≤ S ≤ T; the last is -1.

    - trailing: every T/S-th, counted down from T-1 (Lin et al. 2024, table 2).
    - leading: multiples of ⌊T/S⌋; the first is below T-1, the last is 0 (Diffusers' default).
    - uniform: from T-1 to 0, both included (Diffusers' `linspace`).
    - quadratic: the grid of the DDIM paper's CIFAR-10 results (Song et al. 2021, appendix D.2), from 0.8·T to 0.
      Near 0 its whole numbers coincide if S > √(0.8·T) + 1; each is then moved up to the next free one.
    - log_snr: fractional, uniform in log-SNR down to 0 (Lu et al. 2022) from where the noise is 80 times the signal
      (Karras et al. 2022's σ_max): with more noise the network can only predict the mean. The first is still T-1,
      because sampling begins there.

    Raises UserError if there are not that many timesteps, or if the spacing is unknown.
    """
    T = schedule.timesteps
    if not 1 <= steps <= T:
        raise UserError(f"cannot take {steps} steps: this model has {T} timesteps; choose 1 to {T}")
    grid: Sequence[float]
    match spacing:
        case "trailing":
            grid = [round(T - i * T / steps) - 1 for i in range(steps)]
        case "leading":
            grid = [i * (T // steps) for i in reversed(range(steps))]
        case "uniform":
            grid = [round(t) for t in np.linspace(T - 1, 0, steps)]
        case "quadratic":
            grid = _quadratic(T, steps)
        case "log_snr":
            grid = _uniform_log_snr(schedule, steps)
        case _:
            raise UserError(f"no spacing named {spacing!r}; there are {', '.join(get_args(Spacing))}")
    return [*map(float, grid), -1.0]


def _quadratic(T: int, steps: int) -> list[int]:
    rising: list[int] = []
    for root in np.linspace(0, math.sqrt(0.8 * T), steps):
        rising.append(max(int(root**2), rising[-1] + 1 if rising else 0))
    return rising[::-1]


def _uniform_log_snr(schedule: NoiseSchedule, steps: int) -> list[float]:
    last = float(schedule.timesteps - 1)
    values = np.linspace(max(schedule.log_snr(last), LEAST_LOG_SNR), schedule.log_snr(0), steps)
    return [last, *(schedule.t_from_log_snr(float(value)) for value in values[1:-1]), 0.0][:steps]
