"""The Denoiser: the one interface between networks and samplers, restoration and editing.

Given x_t and t it returns the predicted x_0 and ε. It handles labels, guidance, thresholding, number formats and the
compute shape, so that a sampler is only its formula.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion, Timestep

# (x_t, t as (N,), labels as (N,) or None) -> (N, C, H, W), or (N, 2C, H, W) if the variance is learned
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Clip = Literal["static", "dynamic"] | None

DYNAMIC_QUANTILE = 0.995  # Saharia et al. 2022, section 2.3 and appendix D


@dataclass(frozen=True)
class Prediction:
    """The network's prediction for x_t. Always x_t = √ᾱ_t x_0 + √(1-ᾱ_t) epsilon, also after clipping.

    `variance_fraction`: only if the variance is learned; log Σ = fraction·log β + (1-fraction)·log β̃ (Nichol &
    Dhariwal 2021, eq. 15).
    """

    x_0: Tensor
    epsilon: Tensor
    variance_fraction: Tensor | None = None


class Denoiser:
    """Any network as a denoiser.

    Args:
        network: callable (x_t (N, C, H, W), t (N,), labels (N,) or None) -> the prediction that `diffusion.prediction`
            names, (N, C, H, W), or (N, 2C, H, W) if the variance is learned.
        diffusion: schedule, prediction and variance.
        labels: class index of each image (N,), or None for an unconditional network.
        null_label: the class index that means "no class"; guidance other than 1 needs it.
        guidance: W of classifier-free guidance, out = null + W·(class - null); 1 is off, 0 unconditional.
        guidance_interval: the noise levels σ = √(1-ᾱ_t) / √ᾱ_t, lowest and highest, between which guidance acts
            (Kynkäänniemi et al. 2024); elsewhere it is 1. None: everywhere.
        guidance_rescale: φ of Lin et al. 2024, eq. 15-16; pulls the standard deviation back to the unguided one.
        clip: "static" limits the predicted x_0 to [-1, 1]; "dynamic" (Imagen) to its own 99.5% quantile, then rescales;
            None leaves it.
        batch_size: every forward pass has exactly this many images, the last batch padded, so that an image's bits do
            not depend on how many are sampled with it. None: the batch as it comes.
        smallest_batch: smallest_batch(n, rows) is a number of images from n to `batch_size` that gives an image the
            same bits as `batch_size` would, at less cost; default: `batch_size`. rows: the network's inputs per image.
        dtype: number format of the network's forward pass; predictions come back in x_t's dtype.
        integer_t: give the network whole timesteps as int64, for networks that look t up in a table. A fractional
            timestep stays a float; the spacing log_snr is the only one that has them.
    """

    def __init__(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        *,
        labels: Tensor | None = None,
        null_label: int | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        clip: Clip = "static",
        batch_size: int | None = None,
        smallest_batch: Callable[[int, int], int] | None = None,
        dtype: torch.dtype | None = None,
        integer_t: bool = False,
    ):
        if not math.isfinite(guidance):
            raise UserError(f"guidance must be a number, not {guidance}")
        if guidance_interval is not None and not 0 <= guidance_interval[0] < guidance_interval[1]:
            levels = "{:g} and {:g}".format(*guidance_interval)
            raise UserError(f"guidance_interval is a lowest and a highest noise level, such as 0.3 and 5, not {levels}")
        if not 0 <= guidance_rescale <= 1:
            raise UserError(f"guidance_rescale is a fraction from 0 to 1, not {guidance_rescale}")
        if guidance != 1 and null_label is None:
            raise UserError("guidance needs a class-conditional model that was trained with classes dropped")
        if guidance != 1 and labels is None:
            raise UserError(f"guidance {guidance:g} needs labels: it moves the prediction towards a class")
        if clip not in ("static", "dynamic", None):
            raise UserError(f"clip is static, dynamic or None, not {clip!r}")
        self.network, self.diffusion, self.schedule = network, diffusion, diffusion.schedule
        self.labels, self.null_label = labels, null_label
        self.guidance, self.guidance_interval, self.guidance_rescale = guidance, guidance_interval, guidance_rescale
        self.clip, self.batch_size, self.dtype, self.integer_t = clip, batch_size, dtype, integer_t
        self.smallest_batch = smallest_batch

    def __call__(self, x_t: Tensor, t: Timestep) -> Prediction:
        """Predict x_0 and ε of x_t (N, C, H, W) at one timestep t, which may be fractional, or at whole ones (N,)."""
        whole = self.integer_t and (isinstance(t, Tensor) or t == int(t))
        format_of_t = torch.int64 if whole else torch.promote_types(x_t.dtype, torch.float32)
        if isinstance(t, Tensor):
            times = t.to(x_t.device, format_of_t)
        else:
            times = torch.full((len(x_t),), t, dtype=format_of_t, device=x_t.device)
        output = self._in_batches(x_t, times, self._weight(t, x_t)).to(x_t.dtype)
        fraction = None
        if self.diffusion.learns_variance:
            output, raw = output.chunk(2, dim=1)
            fraction = (raw + 1) / 2
        x_0 = self._limit(self.diffusion.predicted_x_0(output, x_t, t))
        return Prediction(x_0, self.diffusion.epsilon_from_x_0(x_0, x_t, t), fraction)

    def _weight(self, t: Timestep, x_t: Tensor) -> float | Tensor:
        """Return W at t, if t is a tensor for each image (N, 1, 1, 1)."""
        if self.guidance_interval is None or self.guidance == 1:
            return self.guidance
        alpha, sigma = self.diffusion.alpha_sigma(t, x_t)
        above, below = (sigma >= level * alpha for level in self.guidance_interval)
        if isinstance(above, Tensor):
            return torch.where(above & ~below, self.guidance, 1.0)
        return self.guidance if above and not below else 1.0

    def _in_batches(self, x_t: Tensor, times: Tensor, weight: float | Tensor) -> Tensor:
        """Run the network over chunks of exactly `batch_size` images, padding the last."""
        n, size = len(x_t), self.batch_size or len(x_t)
        if n == size:
            return self._guided(x_t, times, self.labels, weight)
        rows = 1 if self.labels is None or _takes_one_row(weight) else 2
        outputs = []
        for start in range(0, n, size):
            padded = size
            if n - start < size and self.smallest_batch is not None and not x_t.requires_grad:
                padded = self.smallest_batch(n - start, rows)
            index = torch.arange(start, start + padded, device=x_t.device).clamp(max=n - 1)
            labels = None if self.labels is None else self.labels[index]
            weights = weight[index] if isinstance(weight, Tensor) else weight
            outputs.append(self._guided(x_t[index], times[index], labels, weights))
        return torch.cat(outputs)[:n]

    def _guided(self, x_t: Tensor, times: Tensor, labels: Tensor | None, weight: float | Tensor) -> Tensor:
        """Return the network's output, with classifier-free guidance (Ho & Salimans 2022), both halves in one batch."""
        x = x_t if self.dtype is None else x_t.to(self.dtype)
        if labels is None or self.null_label is None:
            return self.network(x, times, labels)
        null = torch.full_like(labels, self.null_label)
        if _takes_one_row(weight):
            return self.network(x, times, labels if weight else null)
        both = self.network(torch.cat([x, x]), torch.cat([times, times]), torch.cat([labels, null]))
        conditional, unconditional = both.to(x_t.dtype).chunk(2)
        channels = x.shape[1]  # guidance moves the mean; a learned variance stays the class's own
        mean, null_mean = conditional[:, :channels], unconditional[:, :channels]
        guided = self._rescaled(null_mean + weight * (mean - null_mean), mean)
        return torch.cat([guided, conditional[:, channels:]], dim=1)

    def _rescaled(self, guided: Tensor, conditional: Tensor) -> Tensor:
        if self.guidance_rescale == 0:
            return guided
        axes = tuple(range(1, guided.ndim))
        factor = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return guided * (self.guidance_rescale * factor + 1 - self.guidance_rescale)

    def _limit(self, x_0: Tensor) -> Tensor:
        if self.clip == "static":
            return x_0.clamp(-1, 1)
        if self.clip == "dynamic":
            bound = x_0.flatten(1).float().abs().quantile(DYNAMIC_QUANTILE, dim=1).clamp(min=1)
            bound = bound.to(x_0.dtype).reshape(-1, *[1] * (x_0.ndim - 1))
            return x_0.clamp(-bound, bound) / bound
        return x_0


def _takes_one_row(weight: float | Tensor) -> bool:
    """Whether the network is asked once per image: with the class, or with none."""
    return not isinstance(weight, Tensor) and weight in (0, 1)
