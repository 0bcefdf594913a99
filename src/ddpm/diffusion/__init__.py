"""The diffusion process: schedules, q(x_t|x_0), losses and the variational bound, as pure functions of tensors."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.diffusion.config import DiffusionConfig
    from ddpm.diffusion.gaussian import GaussianDiffusion, Posterior
    from ddpm.diffusion.likelihood import VariationalBound, discretized_log_likelihood
    from ddpm.diffusion.loss import DiffusionLoss, loss_weights
    from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
    from ddpm.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, TimestepSampler

__all__ = [
    "TIMESTEP_SAMPLERS",
    "DiffusionConfig",
    "DiffusionLoss",
    "GaussianDiffusion",
    "NoiseSchedule",
    "Posterior",
    "TimestepSampler",
    "VariationalBound",
    "discretized_log_likelihood",
    "loss_weights",
    "make_betas",
    "rescale_zero_terminal_snr",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DiffusionConfig": "ddpm.diffusion.config",
        "DiffusionLoss": "ddpm.diffusion.loss",
        "GaussianDiffusion": "ddpm.diffusion.gaussian",
        "NoiseSchedule": "ddpm.diffusion.schedule",
        "Posterior": "ddpm.diffusion.gaussian",
        "TIMESTEP_SAMPLERS": "ddpm.diffusion.timestep_samplers",
        "TimestepSampler": "ddpm.diffusion.timestep_samplers",
        "VariationalBound": "ddpm.diffusion.likelihood",
        "discretized_log_likelihood": "ddpm.diffusion.likelihood",
        "loss_weights": "ddpm.diffusion.loss",
        "make_betas": "ddpm.diffusion.schedule",
        "rescale_zero_terminal_snr": "ddpm.diffusion.schedule",
    },
)
