"""Samplers, by name. A new one is a function like these in a file of its own, and one line here."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddpm.common.errors import UserError, nearest
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.samplers.algorithms import (
    Callback,
    Noise,
    Sampler,
    Step,
    ancestral,
    ddim,
    dpm_solver,
    dpm_solver_sde,
    heun,
    unipc,
)
from ddpm.samplers.denoiser import Clip, Denoiser, Network, Prediction
from ddpm.samplers.grid import Spacing, timestep_grid

__all__ = [
    "DEFAULT_SAMPLER",
    "SAMPLERS",
    "Callback",
    "Clip",
    "Denoiser",
    "Network",
    "Noise",
    "Prediction",
    "Sampler",
    "SamplerSpec",
    "Spacing",
    "Step",
    "find_sampler",
    "timestep_grid",
]


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler and what choosing one takes to know."""

    function: Callable[..., Tensor]  # a `Sampler`, with options of its own
    evaluations_per_step: int = 1
    spacing: Spacing = "trailing"

    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        timesteps: Sequence[float],
        *,
        noise: Noise,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor:
        """Run it; UserError for an option that it does not take."""
        self.check(options)
        return self.function(denoiser, x_T, timesteps, noise=noise, callback=callback, **options)

    def check(self, options: Iterable[str]) -> None:
        """UserError for an option that it does not take."""
        known = set(inspect.signature(self.function).parameters) - set(inspect.signature(Sampler.__call__).parameters)
        for option in options:
            if option not in known:
                raise UserError(f"the sampler {self.function.__name__} takes no option {option!r}")

    def timesteps(self, schedule: NoiseSchedule, steps: int, spacing: Spacing | None = None) -> list[float]:
        """S timesteps, descending, by `spacing` or the sampler's own."""
        return timestep_grid(schedule, steps, spacing or self.spacing)

    def evaluations(self, steps: int) -> int:
        """Network evaluations of a run down to the data: S, and 2S-1 for Heun; guidance doubles the work of each."""
        return self.evaluations_per_step * (steps - 1) + 1


SAMPLERS: dict[str, SamplerSpec] = {
    "ancestral": SamplerSpec(ancestral),
    "ddim": SamplerSpec(ddim),
    "dpm++": SamplerSpec(dpm_solver, spacing="log_snr"),
    "dpm++sde": SamplerSpec(dpm_solver_sde),
    "unipc": SamplerSpec(unipc),
    "heun": SamplerSpec(heun, evaluations_per_step=2),
}


DEFAULT_SAMPLER = "dpm++sde"  # at 20 evaluations, the usual number, it is the best of docs/speed.md's tables


def find_sampler(name: str) -> SamplerSpec:
    """The sampler of this name; UserError with the nearest one otherwise."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    raise UserError(f"no sampler named {name!r}; {nearest(name, SAMPLERS)}")
