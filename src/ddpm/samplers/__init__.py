"""Samplers by name. To add one, write a function in `algorithms.py` and add a line to `SAMPLERS` here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddpm.common.errors import UserError, nearest
from ddpm.common.names import DEFAULT_SAMPLER, DEFAULT_STEPS
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
    "DEFAULT_STEPS",
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
    """A sampler, its default spacing, its cost, and the options (name: default) that only it takes."""

    function: Callable[..., Tensor]  # a `Sampler`
    evaluations_per_step: int = 1
    spacing: Spacing = "trailing"
    options: Mapping[str, float] = field(default_factory=dict)

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
        """Run the sampler; see `Sampler`. Raises UserError for an option that it does not take."""
        self.check(options)
        return self.function(denoiser, x_T, timesteps, noise=noise, callback=callback, **options)

    def check(self, options: Iterable[str]) -> None:
        """Raise UserError for an option that this sampler does not take."""
        for option in options:
            if option not in self.options:
                raise UserError(f"the sampler {self.function.__name__} takes no option {option!r}")

    def timesteps(self, schedule: NoiseSchedule, steps: int, spacing: Spacing | None = None) -> list[float]:
        """Return the timesteps of a run; `spacing` defaults to the sampler's own. See `timestep_grid`."""
        return timestep_grid(schedule, steps, spacing or self.spacing)

    def evaluations(self, steps: int) -> int:
        """Count the network evaluations per image: S for S steps, 2S-1 for Heun. Guidance doubles the work of each."""
        return self.evaluations_per_step * (steps - 1) + 1


SAMPLERS: dict[str, SamplerSpec] = {
    "ancestral": SamplerSpec(ancestral),
    "ddim": SamplerSpec(ddim, options={"eta": 0.0}),
    "dpm++": SamplerSpec(dpm_solver, spacing="log_snr"),
    "dpm++sde": SamplerSpec(dpm_solver_sde),
    "unipc": SamplerSpec(unipc),
    "heun": SamplerSpec(heun, evaluations_per_step=2),
}


def find_sampler(name: str) -> SamplerSpec:
    """Return the sampler of this name; UserError names the nearest one."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    raise UserError(f"no sampler named {name!r}; {nearest(name, SAMPLERS)}")
