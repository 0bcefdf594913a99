"""PSNR and SSIM against scikit-image."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr, ssim, ssim_or_none


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (1, 11, 11)])
def test_psnr_and_ssim_equal_scikit_image(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, *shape, generator=generator) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    for one, other, found_psnr, found_ssim in zip(x.double(), y.double(), psnr(y, x), ssim(y, x), strict=True):
        a, b = one.numpy(), other.numpy()
        assert float(found_psnr) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2))
        expected = structural_similarity(
            a, b, data_range=2, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(found_ssim) == pytest.approx(expected, abs=1e-6)


def test_psnr_and_ssim_of_equal_images():
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(psnr(x, x), torch.full((2,), math.inf, dtype=torch.float64))
    np.testing.assert_allclose(ssim(x, x), 1)


def test_ssim_refuses_small_images():
    with pytest.raises(UserError, match="11×11"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fidelity_of_half_precision_is_computed_in_double(dtype):
    images = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(dtype)
    originals = (images.double() + 0.01).to(dtype)
    assert torch.equal(psnr(images, originals), psnr(images.double(), originals.double()))
    assert torch.equal(ssim(images, originals), ssim(images.double(), originals.double()))


def test_ssim_or_none_is_none_below_the_window():
    small, large = torch.zeros(2, 1, 10, 20), torch.zeros(2, 1, 11, 11)
    assert ssim_or_none(small, small) is None
    assert torch.equal(ssim_or_none(large, large), ssim(large, large))
