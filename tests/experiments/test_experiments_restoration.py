"""Classical restoration methods solve their problems: a weak baseline would flatter our methods."""

import pytest
import torch
from skimage.restoration import denoise_tv_chambolle

from ddpm.restoration import Denoising, Task
from experiments.restoration.images import gradient, gradient_adjoint, total_variation

SHAPE = (1, 16, 16)


def variation(x):
    return gradient(x).square().sum((0, 2)).sqrt().sum()


def blocks(seed=0):
    """Flat squares, which total variation restores best."""
    values = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return values.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_gradient_adjoint_is_the_adjoint_of_gradient():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    p = torch.randn(2, 2, 3, 5, 7, generator=generator, dtype=torch.float64)
    assert torch.isclose((gradient(x) * p).sum(), (x * gradient_adjoint(p)).sum())


@pytest.mark.parametrize("weight", [0.05, 0.2])
def test_total_variation_denoises_like_scikit_image(weight):
    noisy = blocks() + 0.2 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    found = total_variation(Denoising(SHAPE), noisy, weight)
    for mine, image in zip(found, noisy, strict=True):
        theirs = torch.from_numpy(denoise_tv_chambolle(image[0].numpy(), weight, eps=1e-8, max_num_iter=2000))
        objectives = [0.5 * (x - image).square().sum() + weight * variation(x[None]) for x in (mine, theirs[None])]
        assert objectives[0] < objectives[1] * 1.01
        assert (mine[0] - theirs).square().mean().sqrt() < 0.01


@pytest.mark.parametrize("task", [Task("inpaint", mask="random:0.5"), Task("superresolve", scale=2)])
def test_total_variation_without_noise_fits_the_measurement_with_least_variation(task):
    x = blocks()
    operator = task.operator(SHAPE)
    y = operator.H(x)
    found = total_variation(operator, y, 0.0)
    assert torch.allclose(operator.H(found), y, atol=1e-5)
    for seed in range(20):  # TV is convex, so a point that no direction improves is a minimum
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        direction = direction - operator.H_pinv(operator.H(direction))
        assert variation(found) < variation(found + 0.01 * direction)
    assert variation(found) < variation(x) * 1.001  # x fits the measurement, too
