"""The `process` section of a configuration: schedule, prediction, variance and objective."""

from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion, PredictionName, VarianceName
from ddpm.diffusion.loss import DiffusionLoss, LossName, WeightingName
from ddpm.diffusion.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, TimestepSampler, TimestepSamplerName

Beta = Annotated[float, Field(gt=0, le=1)]


class DiffusionConfig(BaseModel):
    """The paper's process by default; every field is described where it acts.

    `betas`, a list of β_0 … β_{T-1}, replaces `schedule` and sets `timesteps`.
    """

    model_config = ConfigDict(extra="forbid")

    schedule: ScheduleName = "linear"
    timesteps: int = Field(1000, ge=2)
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    betas: list[Beta] | None = Field(None, min_length=2)
    zero_terminal_snr: bool = False
    prediction: PredictionName = "epsilon"
    variance: VarianceName = "fixed_large"
    loss: LossName = "simple"
    weighting: WeightingName = "none"
    min_snr_gamma: float = Field(5.0, gt=0)
    p2_gamma: float = Field(1.0, ge=0)
    p2_k: float = Field(1.0, gt=0)
    timestep_sampler: TimestepSamplerName = "uniform"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.betas is not None:
            if "timesteps" in self.model_fields_set and self.timesteps != len(self.betas):
                raise ValueError(f"betas has {len(self.betas)} values but timesteps is {self.timesteps}")
            self.timesteps = len(self.betas)
        try:
            self.build_loss()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    def build_schedule(self) -> NoiseSchedule:
        if self.betas is not None:
            betas = torch.tensor(self.betas, dtype=torch.float64)
        else:
            betas = make_betas(self.schedule, self.timesteps, self.beta_start, self.beta_end)
        return NoiseSchedule(rescale_zero_terminal_snr(betas) if self.zero_terminal_snr else betas)

    def build(self) -> GaussianDiffusion:
        return GaussianDiffusion(self.build_schedule(), self.prediction, self.variance)

    def build_loss(self) -> DiffusionLoss:
        return DiffusionLoss(
            self.build(),
            self.loss,
            self.weighting,
            min_snr_gamma=self.min_snr_gamma,
            p2_gamma=self.p2_gamma,
            p2_k=self.p2_k,
        )

    def build_timestep_sampler(self) -> TimestepSampler:
        """How training draws timesteps; a loss-aware one starts with an empty history."""
        return TIMESTEP_SAMPLERS[self.timestep_sampler](self.timesteps)
