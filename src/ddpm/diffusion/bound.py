"""The variational bound on the negative log-likelihood of Ho et al. 2020 (eq. 5), term by term, in bits/dim.

Index t here is t+1 in the paper: t = T-1 ... 1 are the terms L_{t-1}, t = 0 is the decoder's L_0, and `prior` is L_T.
Since μ̃ is linear in x_0, every term depends on x_t only through the predicted x_0; at t = 0 the mean *is* the
predicted x_0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.diffusion.gaussian import GaussianDiffusion, TimestepTable

HALF_BIN = 1 / 255  # inputs are k/127.5 - 1
OPEN_TAIL = 0.999  # the outermost levels take all the probability beyond them
LOG_PROBABILITY_FLOOR = math.log(1e-12)  # as in Ho et al., so that results compare


class VariationalBound:
    """The terms of the bound for one process.

    Images are (N, C, H, W); every result is (N,), a mean over C, H and W, in bits. For an image of D dimensions the
    whole bound is `prior(x_0)` + the sum of `term(..., t)` over all T timesteps, and D times that is its code length.
    """

    def __init__(self, diffusion: GaussianDiffusion):
        schedule = diffusion.schedule
        # The factor of x_0 in the posterior mean (eq. 7).
        mean_weight = schedule.alphas_cumprod_prev.sqrt() * schedule.betas / (1 - schedule.alphas_cumprod)
        self._table = TimestepTable(
            mean_weight, schedule.posterior_log_variance, schedule.betas.log(), diffusion.log_variance
        )
        self._alpha_bar_T = float(schedule.alphas_cumprod[-1])

    def term(self, predicted_x_0: Tensor, x_0: Tensor, t: Tensor, variance_fraction: Tensor | None = None) -> Tensor:
        """Return L_{t-1} = KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)) if t ≥ 1, L_0 = -log p(x_0|x_1) if t = 0.

        Args:
            predicted_x_0: the prediction for x_t; clip it to [-1, 1] to evaluate a model.
            x_0: the images, exactly k/127.5 - 1.
            t: integers (N,) in 0..T-1.
            variance_fraction: if the variance is learned, log Σ = fraction·log β + (1-fraction)·log β̃.
        """
        mean_weight, posterior_log_variance, log_beta, log_variance = self._table(t, x_0)
        if variance_fraction is not None:
            log_variance = posterior_log_variance + variance_fraction * (log_beta - posterior_log_variance)
        squared = (mean_weight * (predicted_x_0 - x_0)) ** 2
        excess = posterior_log_variance - log_variance
        kl = 0.5 * (excess.expm1() - excess + squared * (-log_variance).exp())
        nll = -discretized_log_likelihood(x_0, predicted_x_0, 0.5 * log_variance)
        # Both branches for every image: selecting those with t = 0 would stall a GPU.
        decodes = (t.to(x_0.device) == 0).reshape(-1, *[1] * (x_0.ndim - 1))
        return torch.where(decodes, nll, kl).flatten(1).mean(1) / math.log(2)

    def prior(self, x_0: Tensor) -> Tensor:
        """Return L_T = KL(q(x_T|x_0) || N(0, I))."""
        variance = 1 - self._alpha_bar_T
        kl = 0.5 * (variance - 1 - math.log(variance) + self._alpha_bar_T * x_0**2)
        return kl.flatten(1).mean(1) / math.log(2)


def discretized_log_likelihood(x_0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log of the mass of N(mean, std²) in the bin of each level (Ho et al. eq. 13), per element, in nats.

    The CDF is the tanh approximation Φ(x) ≈ σ(2√(2/π)(x + 0.044715x³)). The difference of two sigmoids is taken in
    log space, σ(b) - σ(a) = σ(b)σ(-a)(1 - e^{a-b}), so that it stays exact in float32 far into the tails.
    """
    inverse_std = (-log_std).exp()
    upper, lower = (x_0 - mean + HALF_BIN) * inverse_std, (x_0 - mean - HALF_BIN) * inverse_std
    slope, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    below = F.logsigmoid(slope * (upper + cubic * upper**3))  # log P(X ≤ upper edge)
    above = F.logsigmoid(-slope * (lower + cubic * lower**3))  # log P(X ≥ lower edge)
    # b - a, factored so that it never cancels to zero.
    width = slope * 2 * HALF_BIN * inverse_std * (1 + cubic * (upper**2 + upper * lower + lower**2))
    within = below + above + (-(-width).expm1()).log()
    log_mass = torch.where(x_0 < -OPEN_TAIL, below, torch.where(x_0 > OPEN_TAIL, above, within))
    return log_mass.clamp(min=LOG_PROBABILITY_FLOOR)
