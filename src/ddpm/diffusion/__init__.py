"""The diffusion process: schedules, q(x_t|x_0), losses and the variational bound, as pure functions of tensors."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.diffusion.bound import VariationalBound as VariationalBound
    from ddpm.diffusion.bound import discretized_log_likelihood as discretized_log_likelihood
    from ddpm.diffusion.config import DiffusionConfig as DiffusionConfig
    from ddpm.diffusion.gaussian import GaussianDiffusion as GaussianDiffusion
    from ddpm.diffusion.gaussian import Posterior as Posterior
    from ddpm.diffusion.loss import DiffusionLoss as DiffusionLoss
    from ddpm.diffusion.loss import loss_weights as loss_weights
    from ddpm.diffusion.schedule import NoiseSchedule as NoiseSchedule
    from ddpm.diffusion.schedule import make_betas as make_betas
    from ddpm.diffusion.schedule import rescale_zero_terminal_snr as rescale_zero_terminal_snr
    from ddpm.diffusion.timestep_samplers import TIMESTEP_SAMPLERS as TIMESTEP_SAMPLERS
    from ddpm.diffusion.timestep_samplers import TimestepSampler as TimestepSampler

__getattr__, __dir__, __all__ = lazy_exports(__name__)
