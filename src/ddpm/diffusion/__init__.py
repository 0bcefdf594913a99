"""The diffusion process: schedules, q(x_t|x_0), losses and the variational bound, as pure functions of tensors."""

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
