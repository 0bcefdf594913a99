"""Conversion to and from deepinv, compared with deepinv's own physics and DDRM."""

import math

import numpy as np
import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr
from ddpm.restoration import as_deepinv, from_deepinv, from_deepinv_measurement
from ddpm.restoration.deepinv import denoiser_as_deepinv
from ddpm.restoration.methods import METHODS, ddrm
from ddpm.restoration.operators import CircularBlur
from ddpm.samplers.grid import timestep_grid
from experiments.restoration.gaussian import GaussianPrior

deepinv = pytest.importorskip("deepinv")
physics = deepinv.physics

SHAPE = (1, 16, 16)


def decomposable(sigma=0.1):
    noise = physics.GaussianNoise(sigma)
    mask = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    kernel = torch.tensor([[0.0, 0.2, 0.1], [0.1, 0.3, 0.0], [0.0, 0.3, 0.0]])[None, None]
    return {
        "denoising": physics.Denoising(noise),
        "inpainting": physics.Inpainting(img_size=SHAPE, mask=mask, noise_model=noise),
        "camera": physics.SinglePixelCamera(m=64, img_size=SHAPE, noise_model=noise),
        "economic": physics.SinglePixelCamera(m=40, img_size=SHAPE, fast=False, noise_model=noise),
        "blur": physics.BlurFFT(img_size=SHAPE, filter=kernel, noise_model=noise),
    }


@pytest.mark.parametrize("name", ["denoising", "inpainting", "camera", "economic", "blur", "grey"])
def test_from_deepinv_operator_equals_the_physics(name):
    shape = (3, 16, 16) if name == "grey" else SHAPE
    theirs = physics.Decolorize() if name == "grey" else decomposable()[name]
    ours = from_deepinv(theirs, shape)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    y = theirs.A(x)
    assert torch.allclose(ours.H(x), y, atol=1e-5)
    assert torch.allclose(ours.Ht(y), theirs.A_adjoint(y), atol=1e-5)
    assert torch.allclose(ours.H(ours.H_pinv(y)), y, atol=1e-4)
    inside = ours.Vt(x) * ours.seen
    assert torch.allclose(ours.Vt(ours.V(inside)) * ours.seen, inside, atol=1e-5)
    assert ours.singulars.ndim <= inside.ndim - 1  # one for each coordinate of an image, or one for several
    assert torch.broadcast_shapes(ours.singulars.shape, inside.shape[1:]) == inside.shape[1:]


@pytest.mark.parametrize("method", ["ddrm", "ddnm"])
@pytest.mark.parametrize("name", ["inpainting", "economic", "blur"])
def test_from_deepinv_operator_restores(name, method):
    theirs = decomposable(0.05)[name]
    prior = GaussianPrior.smooth(SHAPE)
    denoiser, x = prior.denoiser(), prior.sample(20)
    operator = from_deepinv(theirs, SHAPE)
    torch.manual_seed(0)
    y = from_deepinv_measurement(operator, theirs((x + 1) / 2))
    generator = torch.Generator().manual_seed(1)
    found = METHODS[method].run(
        denoiser,
        y,
        operator,
        0.1,
        timestep_grid(denoiser.schedule, 20),
        noise=lambda: torch.randn(20, *SHAPE, generator=generator),
    )
    assert psnr(found, x).mean() > psnr(operator.H_pinv(y), x).mean() + 1


def test_linear_physics_works_with_ddnm_and_dps():
    theirs = physics.Downsampling(img_size=SHAPE, filter="bilinear", factor=2)
    operator = from_deepinv(theirs, SHAPE)
    prior = GaussianPrior.smooth(SHAPE)
    denoiser, x = prior.denoiser(), prior.sample(4)
    y = from_deepinv_measurement(operator, theirs.A((x + 1) / 2))
    grid = timestep_grid(denoiser.schedule, 20)
    generator = torch.Generator().manual_seed(1)
    found = METHODS["ddnm"].run(
        denoiser, y, operator, 0.0, grid, noise=lambda: torch.randn(4, *SHAPE, generator=generator)
    )
    assert (operator.H(found) - y).abs().max() < 1e-2  # deepinv's pseudo-inverse is an iteration
    METHODS["dps"].check(operator, 0.1)
    for method in ("ddrm", "ddnm"):
        with pytest.raises(UserError, match="singular value"):
            METHODS[method].check(operator, 0.1)


def test_blurfft_becomes_circular_blur():
    assert isinstance(from_deepinv(decomposable()["blur"], SHAPE), CircularBlur)


def test_from_deepinv_refuses_other_decompositions_and_nonlinear_physics():
    for factor in (2, 1.001):
        skewed = physics.DecomposablePhysics(
            V_adjoint=lambda x, factor=factor: factor * x,
            V=lambda x, factor=factor: factor * x,
            mask=1.0,
            img_size=SHAPE,
        )
        with pytest.raises(UserError, match="not orthonormal"):
            from_deepinv(skewed, SHAPE)
    with pytest.raises(UserError, match="not a linear"):
        from_deepinv(physics.Haze(), SHAPE)


@pytest.mark.parametrize("name", ["denoising", "inpainting", "camera"])
def test_ddrm_equals_deepinv_ddrm(name):
    """100 images, one denoiser, one σ grid: mean PSNR within two standard errors of the difference.

    deepinv divides its noise by √2, which suits the complex half spectrum of `BlurFFT` and halves the variance of
    everything else. Given that half, our DDRM is theirs; with DDRM's own noise a sample is noisier, as it must be.
    """
    theirs = decomposable(0.1)[name]
    prior = GaussianPrior.smooth(SHAPE)
    denoiser, x = prior.denoiser(), prior.sample(100)
    torch.manual_seed(1)
    y = theirs((x + 1) / 2)
    grid = timestep_grid(denoiser.schedule, 20)
    levels = [sigma / signal / 2 for signal, sigma in map(denoiser.schedule.alpha_sigma, grid)]
    with torch.no_grad():
        their_samples = deepinv.sampling.DDRM(denoiser_as_deepinv(denoiser), sigmas=np.array(levels))(y, theirs)
    operator = from_deepinv(theirs, SHAPE)

    def ours(noise_scale):
        generator = torch.Generator().manual_seed(5)
        return ddrm(
            denoiser,
            from_deepinv_measurement(operator, y),
            operator,
            0.2,
            grid,
            noise=lambda: noise_scale * torch.randn(100, *SHAPE, generator=generator),
        )

    expected = psnr(2 * their_samples - 1, x)
    difference = psnr(ours(math.sqrt(0.5)), x) - expected
    assert difference.mean().abs() < 2 * difference.std() / 10
    assert psnr(ours(1.0), x).mean() < expected.mean()


def test_as_deepinv_denoiser_is_the_posterior_mean(grey):
    model, prior = grey
    denoiser = as_deepinv(model, precision="fp32", clip=None)
    assert isinstance(denoiser, deepinv.models.Denoiser)
    x = (prior.sample(3) + 1) / 2
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    exact = [prior.posterior(torch.eye(144).double(), (2 * one - 1).flatten().double(), 0.4)[0] for one in noisy]
    expected = (torch.stack(exact).float().reshape(x.shape) + 1) / 2
    assert torch.allclose(denoiser(noisy, 0.2), expected, atol=1e-3)
    assert torch.allclose(denoiser(noisy, torch.tensor([0.2, 0.2, 0.2])), expected, atol=1e-3)
    assert torch.equal(denoiser(noisy, 0.0), noisy)
    mixed = denoiser(noisy, torch.tensor([0.2, 0.0, 0.4]))
    assert torch.allclose(mixed[0], expected[0], atol=1e-3)
    assert torch.equal(mixed[1], noisy[1])


@pytest.mark.parametrize("labels", [[0, 1, 2], [1]], ids=["one per image", "one for all"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_as_deepinv_keeps_each_label_with_one_or_several_sigmas(conditional_model, batch_size, labels):
    noisy = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = as_deepinv(
        conditional_model, labels=torch.tensor(labels), batch_size=batch_size, precision="fp32", clip=None
    )
    found = denoiser(noisy, torch.tensor([0.2, 0.3, 0.4]))
    for i, sigma in enumerate((0.2, 0.3, 0.4)):
        alone = as_deepinv(
            conditional_model, labels=torch.tensor([labels[i % len(labels)]]), precision="fp32", clip=None
        )
        assert torch.allclose(found[i : i + 1], alone(noisy[i : i + 1], sigma), atol=1e-4)
    assert torch.allclose(denoiser(noisy, 0.3), denoiser(noisy, torch.full((3,), 0.3)), atol=1e-4)


def test_physics_with_a_mask_or_kernel_per_image_is_refused():
    masks = torch.ones(2, 1, 16, 16)
    masks[0, ..., :8] = 0
    kernels = torch.ones(2, 1, 3, 3) / 9
    for theirs in (
        physics.Inpainting(img_size=SHAPE, mask=masks),
        physics.BlurFFT(img_size=SHAPE, filter=kernels),
        physics.Blur(filter=kernels),
    ):
        with pytest.raises(UserError, match=r"2 values of (mask|filter), one per image"):
            from_deepinv(theirs, SHAPE)
    x = torch.rand(1, *SHAPE)
    alone = physics.Inpainting(img_size=SHAPE, mask=masks[:1])
    assert torch.equal(from_deepinv(alone, SHAPE).H(x), alone.A(x))
