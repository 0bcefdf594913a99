"""What every sampler shares: the record of one step, and the signature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ddpm.samplers.denoiser import Denoiser

Noise = Callable[[], Tensor]  # each call: a fresh standard normal tensor of x_T's shape


@dataclass(frozen=True)
class Step:
    """One step of a sampler, handed to its callback: from x_t, by way of the predicted x_0, to x_prev.

    `index` counts from 0 to `steps` - 1. `t_prev` is -1 in the last step of a run that goes down to the data, and
    x_prev is then the sample.
    """

    index: int
    steps: int
    t: float
    t_prev: float
    x_t: Tensor
    x_0: Tensor
    x_prev: Tensor


Callback = Callable[[Step], None]


class Sampler(Protocol):
    """A sampler takes x_T (N, C, H, W) at timesteps[0] to its answer at timesteps[-1].

    Args:
        denoiser: the network, as `Denoiser`.
        x_T: standard normal noise (or, for editing, any x_t that belongs to timesteps[0]).
        timesteps: S+1 strictly falling numbers for S steps, fractional ones allowed; the last is -1 for the data.
        noise: draws the noise of a step; deterministic samplers never call it, the others once a step except where
            the step ends at the data.
        callback: sees every `Step` as it is done; what it raises ends the run.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        timesteps: Sequence[float],
        *,
        noise: Noise,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor: ...
