"""Estimating σ of Gaussian noise from the degraded image itself."""

import torch
from torch import Tensor

from ddpm.errors import UserError

NORMAL_MAD = 0.6744897501960817  # the median of |z| for standard normal z
MIN_BLOCKS = 16


def estimate_noise(y: Tensor, known: Tensor | None = None) -> float:
    """σ of the noise on one picture y (C, H, W), in y's units, from its finest diagonal Haar details.

    On smooth ground the detail (a - b - c + d)/2 of a 2×2 block holds noise alone, with the noise's own deviation;
    the median over all blocks passes over edges (Donoho & Johnstone 1994). Noise that was cut off at black or white
    before y was stored is underestimated: by half where the whole ground is black.

    `known`: bool (C, H, W) or (H, W), where y holds anything. Raises UserError where fewer than 16 blocks are known.
    """
    if y.ndim != 3 or min(y.shape[-2:]) < 2:
        raise UserError("the noise can only be estimated on pictures of at least 2×2; give its σ instead")
    known = torch.ones_like(y, dtype=torch.bool) if known is None else known.bool().expand_as(y)
    a, b, c, d = _quarters(y.double())
    usable = torch.stack(_quarters(known)).all(0)
    if usable.sum() < MIN_BLOCKS:
        raise UserError("too few neighbouring pixels are known to estimate the noise; give its σ instead")
    return float(((a - b - c + d) / 2)[usable].abs().median() / NORMAL_MAD)


def _quarters(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four pixels of every 2×2 block, as four images of half the size."""
    even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    return even[..., ::2, ::2], even[..., ::2, 1::2], even[..., 1::2, ::2], even[..., 1::2, 1::2]
