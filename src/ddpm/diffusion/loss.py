"""Training losses: L_simple, L_vlb and their hybrid, one number per image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.names import LossName, WeightingName
from ddpm.diffusion.bound import VariationalBound
from ddpm.diffusion.gaussian import GaussianDiffusion, TimestepTable

VLB_WEIGHT = 1e-3  # λ of L_hybrid = L_simple + λ L_vlb (Nichol & Dhariwal 2021, eq. 16)


class DiffusionLoss:
    """The training loss of a process.

    `loss`: "simple" is the squared error of what the network predicts (Ho et al. 2020, eq. 14), "l1" and "huber"
    (threshold 1) its absolute and Huber errors; "vlb" the variational bound in bits/dim, T times the term of the
    sampled timestep, without the constant L_T; "hybrid" L_simple + 0.001 L_vlb, in which the bound trains
    only the variance.
    `weighting`: see `loss_weights`; it applies to the squared error of "simple" and "hybrid".
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        loss: LossName = "simple",
        weighting: WeightingName = "none",
        *,
        min_snr_gamma: float = 5.0,
        p2_gamma: float = 1.0,
        p2_k: float = 1.0,
    ):
        if diffusion.learns_variance and loss not in ("vlb", "hybrid"):
            raise UserError(f"loss {loss} cannot train a learned variance; use loss hybrid or vlb, or a fixed variance")
        if loss == "hybrid" and not diffusion.learns_variance:
            raise UserError("loss hybrid trains the variance, so it needs variance learned_range")
        if weighting != "none" and loss not in ("simple", "hybrid"):
            raise UserError(f"weighting {weighting} is defined for the squared error: use loss simple or hybrid")
        self.diffusion, self.loss = diffusion, loss
        self._bound = VariationalBound(diffusion)
        self._weight = None
        if weighting != "none":
            weights = loss_weights(diffusion, weighting, min_snr_gamma=min_snr_gamma, p2_gamma=p2_gamma, p2_k=p2_k)
            self._weight = TimestepTable(weights)

    def __call__(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each image, float32 (N,).

        Args:
            output: the network's output for (x_t, t): (N, C, H, W), or (N, 2C, H, W) if the variance is learned.
            x_0: the images, k/127.5 - 1.
            x_t: diffusion.q_sample(x_0, t, noise).
            t: integers (N,) in 0..T-1.
            noise: the standard normal noise in x_t.
        """
        output, x_0, x_t, noise = output.float(), x_0.float(), x_t.float(), noise.float()
        fraction = None
        if self.diffusion.learns_variance:
            output, raw = output.chunk(2, dim=1)
            fraction = (raw + 1) / 2
        if self.loss == "vlb":
            return self._vlb(output, fraction, x_0, x_t, t)
        loss = self._error(output, self.diffusion.target(x_0, t, noise)).flatten(1).mean(1)
        if self._weight is not None:
            loss = loss * self._weight(t, loss)[0]
        if self.loss == "hybrid":
            # The mean is detached: L_vlb's gradient is far noisier than L_simple's and would drown it.
            loss = loss + VLB_WEIGHT * self._vlb(output.detach(), fraction, x_0, x_t, t)
        return loss

    def _error(self, output: Tensor, target: Tensor) -> Tensor:
        if self.loss == "l1":
            return F.l1_loss(output, target, reduction="none")
        if self.loss == "huber":
            return F.huber_loss(output, target, reduction="none")
        return F.mse_loss(output, target, reduction="none")

    def _vlb(self, output: Tensor, fraction: Tensor | None, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return T times the term at t: its mean over uniform t is the whole bound without L_T."""
        predicted_x_0 = self.diffusion.predicted_x_0(output, x_t, t)
        return self.diffusion.schedule.timesteps * self._bound.term(predicted_x_0, x_0, t, fraction)


def loss_weights(
    diffusion: GaussianDiffusion,
    weighting: WeightingName,
    *,
    min_snr_gamma: float = 5.0,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
) -> Tensor:
    """Return the weight of the squared error of `diffusion.prediction` at each timestep, float64 (T,).

    The papers define their weights for one kind of error; with SNR = ᾱ/(1-ᾱ),
    |ε - ε̂|² = SNR·|x_0 - x̂_0|² and |v - v̂|² = (SNR + 1)·|x_0 - x̂_0|² convert it to the others.
    snr: SNR on x_0's error (Salimans & Ho 2022); for ε it is 1 throughout.
    min_snr: min(SNR, γ) on x_0's error (Hang et al. 2023).
    p2: 1/(k + SNR)^γ on ε's error (Choi et al. 2022).
    At the last timestep of a zero-terminal-SNR schedule (SNR = 0) all of these would be 0 or 0/0, but sampling starts
    there; so its weight is 1.
    """
    alphas_cumprod = diffusion.schedule.alphas_cumprod
    snr = alphas_cumprod / (1 - alphas_cumprod)
    match weighting:
        case "none":
            return torch.ones_like(snr)
        case "snr":
            on_epsilon = torch.ones_like(snr)
        case "min_snr":
            on_epsilon = (min_snr_gamma / snr).clamp(max=1)
        case "p2":
            on_epsilon = (p2_k + snr) ** -p2_gamma
    # |ε - ε̂|² divided by the error of the prediction.
    ratios = {"epsilon": torch.ones_like(snr), "x_0": snr, "v": alphas_cumprod}
    return torch.where(snr > 0, on_epsilon * ratios[diffusion.prediction], 1.0)
