"""The few moments of a diffusion, forward or reverse, that will be looked at.

Which ones is decided beforehand and each is kept as uint8, so that memory does not grow with the steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from ddpm.errors import UserError
from ddpm.viewing.pictures import make_grid

FrameSpacing = Literal["uniform", "log_snr"]
Phase = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Frame:
    """One moment: x_t, and beside it x_0 (given, in the forward process; predicted, in the reverse).

    `x_t` and `x_0` are uint8 grids (C, H, W) of all the images; `x_0` is None where there is nothing to show. t = -1 is
    the data, where `log_snr` is +inf.
    """

    phase: Phase
    t: float
    log_snr: float
    x_t: Tensor
    x_0: Tensor | None


class Recorder:
    """Shown every state of a run, keeps the chosen ones as frames.

    Args:
        timesteps: of the states, in the order they will come: S+1 for a run of S steps.
        log_snr: of a timestep.
        phase: which way the run goes.
        frames: how many to keep, at most; the first and the last are always among them.
        spacing: "uniform" over the states, or over their log-SNR.
        columns: of the grid, where there is more than one image.
    """

    def __init__(
        self,
        timesteps: Sequence[float],
        log_snr: Callable[[float], float],
        phase: Phase,
        *,
        frames: int,
        spacing: FrameSpacing = "uniform",
        columns: int | None = None,
    ):
        self.frames: list[Frame] = []
        self.phase, self.timesteps, self.columns = phase, list(timesteps), columns
        self.log_snrs = [log_snr(t) for t in timesteps]
        self.chosen = frozenset(choose_frames(self.log_snrs, frames, spacing))

    def see(self, state: int, x_t: Tensor, x_0: Tensor | None = None) -> None:
        """State number `state` is x_t (N, C, H, W), and x_0 what is known or predicted of its images."""
        if state in self.chosen:
            beside = None if x_0 is None else as_grid(x_0, self.columns)
            moment = (self.phase, self.timesteps[state], self.log_snrs[state])
            self.frames.append(Frame(*moment, as_grid(x_t, self.columns), beside))


def as_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] as one uint8 picture; a single one without a border."""
    return make_grid(images, columns, gap=0 if len(images) == 1 else 2)


def choose_frames(log_snrs: Sequence[float], frames: int, spacing: FrameSpacing = "uniform") -> list[int]:
    """Which of the states to keep, by their index: at most `frames` (at least 2), the first and the last included."""
    last = len(log_snrs) - 1
    if frames < 2:
        raise UserError(f"{frames} frames asked for: a trajectory has at least 2, its first and its last")
    if spacing == "uniform":
        return sorted({round(place) for place in np.linspace(0, last, min(frames, last + 1))})
    if spacing != "log_snr":
        raise UserError(f"no frame spacing named {spacing!r}; there are {', '.join(get_args(FrameSpacing))}")
    finite = [index for index, value in enumerate(log_snrs) if math.isfinite(value)]
    if not finite:
        return sorted({0, last})
    starts, stops = int(finite[0] == 0), int(finite[-1] == last)  # infinite ends are frames of their own
    values = np.array([log_snrs[index] for index in finite])
    count = frames - 2 + starts + stops
    inner = np.linspace(values[0], values[-1], count)[starts : count - stops]
    return sorted({finite[int(np.abs(values - target).argmin())] for target in inner} | {0, last})
