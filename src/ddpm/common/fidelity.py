"""PSNR and SSIM: how close images are to their originals, one number per image."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ddpm.common.errors import UserError

DATA_RANGE = 2.0  # of images in [-1, 1]
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # the 11×11 Gaussian window of Wang et al. 2004
K1, K2 = 0.01, 0.03


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (N,), of images (N, C, H, W) in [-1, 1]; inf if they are equal."""
    error = (images.double() - originals.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(DATA_RANGE**2 / error)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004), (N,), of images (N, C, H, W) in [-1, 1], at least 11×11.

    Gaussian window; mean over the channels and over the pixels whose window lies inside the image. Equal to
    scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.

    Raises UserError if the images are smaller than the window.
    """
    if min(images.shape[-2:]) < 2 * SSIM_RADIUS + 1:
        raise UserError(f"SSIM needs images of at least 11×11, not {images.shape[-2]}×{images.shape[-1]}")
    x, y = images.double(), originals.double()
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def ssim_or_none(images: Tensor, originals: Tensor) -> Tensor | None:
    """`ssim`, or None if the images are smaller than its window, for reports on images of any size."""
    return ssim(images, originals) if min(images.shape[-2:]) >= 2 * SSIM_RADIUS + 1 else None


def _window(images: Tensor) -> Tensor:
    """Gaussian-weighted mean around every pixel whose window lies inside the image."""
    taps = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-0.5 * (taps / SSIM_SIGMA) ** 2)
    weights = weights / weights.sum()
    flat = images.flatten(0, 1)[:, None]
    down = conv2d(flat, weights.reshape(1, 1, -1, 1))
    return conv2d(down, weights.reshape(1, 1, 1, -1)).unflatten(0, images.shape[:2]).squeeze(2)
