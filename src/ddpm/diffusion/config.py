"""The `diffusion` section of a configuration.

PyTorch is imported only to build the objects, so that help texts are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, Field, model_validator

from ddpm.common.errors import UserError
from ddpm.common.names import (
    LossName,
    PredictionName,
    ScheduleName,
    TimestepSamplerName,
    VarianceName,
    WeightingName,
)

if TYPE_CHECKING:
    from ddpm.diffusion.gaussian import GaussianDiffusion
    from ddpm.diffusion.loss import DiffusionLoss
    from ddpm.diffusion.schedule import NoiseSchedule
    from ddpm.diffusion.timestep_samplers import TimestepSampler

Beta = Annotated[float, Field(gt=0, le=1)]


class DiffusionConfig(BaseModel, extra="forbid"):
    """The `diffusion` section; the defaults are those of Ho et al. 2020."""

    schedule: ScheduleName = Field("linear", description="shape of β over t")
    timesteps: int = Field(1000, ge=2, description="T, the number of timesteps")
    beta_start: Beta = Field(1e-4, description="first β; cosine ignores it")
    beta_end: Beta = Field(0.02, description="last β; cosine ignores it")
    betas: list[Beta] | None = Field(
        None, min_length=2, description="a list of every β; replaces schedule and sets timesteps"
    )
    zero_terminal_snr: bool = Field(
        False, description="rescale so that no signal is left at T (Lin et al. 2024); needs prediction v or x_0"
    )
    prediction: PredictionName = Field("epsilon", description="what the network predicts")
    variance: VarianceName = Field(
        "fixed_large",
        description="variance of a sampling step: β̃, β, or learned between them (needs loss hybrid or vlb)",
    )
    loss: LossName = Field(
        "simple", description="squared, absolute or Huber error; variational bound; or hybrid of Nichol & Dhariwal 2021"
    )
    weighting: WeightingName = Field("none", description="weight of a timestep in the loss simple or hybrid")
    min_snr_gamma: float = Field(5.0, gt=0, description="γ of weighting min_snr (Hang et al. 2023)")
    p2_gamma: float = Field(1.0, ge=0, description="γ of weighting p2 (Choi et al. 2022)")
    p2_k: float = Field(1.0, gt=0, description="k of weighting p2")
    timestep_sampler: TimestepSamplerName = Field(
        "uniform", description="how training draws t; stratified spreads a batch over all t, loss_aware by past losses"
    )

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
        """Return β and everything that follows from it."""
        import torch

        from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr

        if self.betas is not None:
            betas = torch.tensor(self.betas, dtype=torch.float64)
        else:
            betas = make_betas(self.schedule, self.timesteps, self.beta_start, self.beta_end)
        return NoiseSchedule(rescale_zero_terminal_snr(betas) if self.zero_terminal_snr else betas)

    def build(self) -> GaussianDiffusion:
        """Return the diffusion process."""
        from ddpm.diffusion.gaussian import GaussianDiffusion

        return GaussianDiffusion(self.build_schedule(), self.prediction, self.variance)

    def build_loss(self) -> DiffusionLoss:
        """Return the training loss."""
        from ddpm.diffusion.loss import DiffusionLoss

        return DiffusionLoss(
            self.build(),
            self.loss,
            self.weighting,
            min_snr_gamma=self.min_snr_gamma,
            p2_gamma=self.p2_gamma,
            p2_k=self.p2_k,
        )

    def build_timestep_sampler(self) -> TimestepSampler:
        """Return a new timestep sampler; a loss-aware one starts with an empty history."""
        from ddpm.diffusion.timestep_samplers import TIMESTEP_SAMPLERS

        return TIMESTEP_SAMPLERS[self.timestep_sampler](self.timesteps)
