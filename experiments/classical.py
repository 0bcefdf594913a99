"""Restoration without a trained model, to compare with: total variation and non-local means."""

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor

from ddpm.restoration.operator import SpectralOperator

TV_ITERATIONS = 400
PDHG_STEP = 8**-0.5  # primal and dual step lengths; their product times ‖∇‖² ≤ 8 may not exceed 1


def total_variation(operator: SpectralOperator, y: Tensor, weight: float) -> Tensor:
    """argmin ½‖Hx - y‖² + λ TV(x) of each image, (N, C, H, W) in [-1, 1]; λ = 0: the least TV(x) with Hx = y.

    The primal-dual method (Chambolle & Pock 2011, algorithm 1), the data term's proximal map taken in H's spectral
    coordinates, where it is exact. TV is isotropic and couples the channels.

    Args:
        weight: λ, for images in [-1, 1].
    """
    measured, seen, gain = operator.Ut(y), operator.seen, operator.singulars
    x = ahead = operator.Ht(y) / gain.max() ** 2
    dual = torch.zeros_like(gradient(x))
    for _ in range(TV_ITERATIONS):
        dual = dual + PDHG_STEP * gradient(ahead)
        dual = dual / dual.square().sum((0, 2), keepdim=True).sqrt().clamp(min=1)
        target = x - PDHG_STEP * gradient_adjoint(dual)
        coordinates = operator.Vt(target)
        if weight > 0:
            trust = PDHG_STEP / weight * gain
            fitted = (coordinates + trust * measured) / (1 + trust * gain)
        else:
            fitted = operator.inverse_singulars * measured
        previous = x
        x = target + operator.V(torch.where(seen, fitted - coordinates, 0.0))
        ahead = 2 * x - previous
    return x.clamp(-1, 1)


def gradient(x: Tensor) -> Tensor:
    """Differences to the neighbours below and to the right, (2, N, C, H, W), 0 across the border."""
    answer = x.new_zeros(2, *x.shape)
    answer[0, ..., :-1, :] = x.diff(dim=-2)
    answer[1, ..., :-1] = x.diff(dim=-1)
    return answer


def gradient_adjoint(p: Tensor) -> Tensor:
    """∇ᵀ p, (N, C, H, W)."""
    answer = torch.zeros_like(p[0])
    down, right = p[0, ..., :-1, :], p[1, ..., :-1]
    answer[..., :-1, :] -= down
    answer[..., 1:, :] += down
    answer[..., :-1] -= right
    answer[..., 1:] += right
    return answer


def nl_means(images: Tensor, strength: float, sigma: float) -> Tensor:
    """Non-local means (scikit-image's) of images (N, C, H, W) in [-1, 1]; strength and σ in units of [0, 1] images.

    The noise must not be cut off at black and white: that moves its mean, which no averaging takes out again.
    """
    pixels = (images.permute(0, 2, 3, 1).numpy() + 1) / 2
    found = [
        denoise_nl_means(one, patch_size=5, patch_distance=10, h=strength, sigma=sigma, channel_axis=-1)
        for one in pixels
    ]
    return torch.from_numpy(np.stack(found).reshape(pixels.shape)).float().permute(0, 3, 1, 2) * 2 - 1
