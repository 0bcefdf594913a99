"""A Diffusers scheduler's configuration and our process, each in the other's words."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from ddpm.errors import UserError
from ddpm.interop.folder import checked
from ddpm.process.gaussian import GaussianProcess, VarianceName
from ddpm.process.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr

MAX_TIMESTEPS = 1_000_000

SCHEDULES: dict[str, ScheduleName] = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS = {"epsilon": "epsilon", "sample": "x_0", "v_prediction": "v"}
VARIANCES: dict[str, VarianceName] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
# Every Diffusers scheduler knows these names; "sigmoid" is DDPMScheduler's alone, so we write its betas out instead.
WRITTEN: tuple[tuple[str, ScheduleName], ...] = (
    ("linear", "linear"),
    ("scaled_linear", "quadratic"),
    ("squaredcos_cap_v2", "cosine"),
)

Beta = Annotated[float, Field(gt=0, le=1)]


class SchedulerConfig(BaseModel):
    """The fields, shared by all of Diffusers' β schedulers, that say how a network was trained."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=2, le=MAX_TIMESTEPS)
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    trained_betas: list[Beta] | None = Field(None, min_length=2, max_length=MAX_TIMESTEPS)
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"] = (
        "fixed_small"
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = True
    clip_sample_range: float = 1.0


def to_process(values: dict[str, Any], learns_variance: bool, where: str) -> GaussianProcess:
    """The process that a network was trained with.

    A scheduler that names no variance (DDIM's has none) gets the learned range where the network answers twice its
    input's channels, and β̃ otherwise, which is DDIM's with η = 1.
    """
    values = {name: value for name, value in values.items() if value is not None}  # null is nothing named
    if "beta_schedule" not in values and "trained_betas" not in values:
        name = values.get("_class_name", "this scheduler")
        raise UserError(f"{where}: {name} has no betas; a DDPM needs a β schedule")
    config = checked(SchedulerConfig, values, where)
    if config.clip_sample and config.clip_sample_range != 1:
        raise UserError(
            f"{where}: clip_sample_range is {config.clip_sample_range:g}, so its images are not in [-1, 1] as all are "
            "here: open it with Diffusers"
        )
    variance = VARIANCES[config.variance_type]
    if learns_variance and "variance_type" not in values:
        variance = "learned_range"
    if learns_variance != (variance == "learned_range"):
        raise UserError(
            f"{where}: variance_type is {config.variance_type}, but the network "
            f"{'answers' if learns_variance else 'does not answer'} with a variance (out_channels twice in_channels)"
        )
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float64)
    else:
        name = SCHEDULES[config.beta_schedule]
        betas = make_betas(name, config.num_train_timesteps, config.beta_start, config.beta_end)
    if config.rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    return GaussianProcess(NoiseSchedule(betas), PREDICTIONS[config.prediction_type], variance)  # type: ignore[arg-type]


def to_scheduler(process: GaussianProcess) -> dict[str, Any]:
    """The `scheduler_config.json` of a process: a DDPMScheduler whose betas are exactly the process's."""
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.schedule.timesteps,
        **_schedule_words(process.schedule),
        "prediction_type": predictions[process.prediction],
        "variance_type": process.variance,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "trailing",  # with fewer steps than T, starts at pure noise (Lin et al. 2024, section 3.3)
        "steps_offset": 0,
    }


def _schedule_words(schedule: NoiseSchedule) -> dict[str, Any]:
    """The named schedule that gives these very betas, or else the betas themselves."""
    for words, betas in _named(schedule):
        if torch.equal(betas, schedule.betas):
            return {"trained_betas": None, **words}
    return {
        "trained_betas": schedule.betas.tolist(),
        "beta_schedule": "linear",
        "beta_start": float(schedule.betas[0]),
        "beta_end": float(schedule.betas[-1]),
        "rescale_betas_zero_snr": False,
    }


def _named(schedule: NoiseSchedule) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Candidates: β_0 and β_{T-1} as they are and as somebody would have written them; rescaling keeps β_0 alone."""
    first, last = float(schedule.betas[0]), float(schedule.betas[-1])
    rescaled = schedule.zero_terminal_snr
    starts = dict.fromkeys([first, float(f"{first:.12g}")])
    ends = [0.02] if rescaled else dict.fromkeys([last, float(f"{last:.12g}")])
    for theirs, ours in WRITTEN:
        for start in starts:
            for end in ends:
                betas = make_betas(ours, schedule.timesteps, start, end)
                words = {"beta_schedule": theirs, "beta_start": start, "beta_end": end}
                yield (
                    {**words, "rescale_betas_zero_snr": rescaled},
                    rescale_zero_terminal_snr(betas) if rescaled else betas,
                )
