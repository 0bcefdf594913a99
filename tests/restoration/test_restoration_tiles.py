"""Large images as overlapping tiles: coverage, labels and seams."""

import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.restoration import restore
from ddpm.restoration.methods import ddrm
from ddpm.restoration.operators import Denoising, Inpainting
from ddpm.restoration.posterior import TiledDenoiser, TileGrid
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.grid import timestep_grid

PROCESS = GaussianDiffusion(NoiseSchedule(make_betas("linear", 100, 1e-3, 0.1)), prediction="x_0")


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (12, 20), (31, 17)])
def test_tiles_cover_the_image(size):
    grid = TileGrid(size, (8, 8))
    covered = torch.zeros(size)
    for top, left in grid.corners:
        assert 0 <= top <= size[0] - 8
        assert 0 <= left <= size[1] - 8
        covered[top : top + 8, left : left + 8] += 1
    assert (covered >= 1).all()


def test_tile_grid_refuses_images_smaller_than_the_model():
    with pytest.raises(UserError, match="smaller than the model's 8×8"):
        TileGrid((8, 7), (8, 8))


def test_pointwise_denoiser_is_equal_in_tiles():
    denoiser = Denoiser(lambda x, t, labels: torch.tanh(2 * x), PROCESS)
    x_t = torch.randn(2, 1, 20, 13)
    tiled, whole = TiledDenoiser(denoiser, TileGrid((20, 13), (8, 8)))(x_t, 50), denoiser(x_t, 50)
    assert torch.allclose(tiled.x_0, whole.x_0, atol=1e-6)
    assert torch.allclose(tiled.epsilon, whole.epsilon, atol=1e-5)


def test_tiles_keep_the_labels_of_their_images():
    denoiser = Denoiser(
        lambda x, t, labels: labels.reshape(-1, 1, 1, 1).float().expand_as(x), PROCESS, labels=torch.tensor([0, 1] * 9)
    )
    grid = TileGrid((16, 16), (8, 8))
    x_0 = TiledDenoiser(denoiser, grid)(torch.randn(2, 1, 16, 16), 50).x_0
    assert len(grid) == 9
    assert torch.allclose(x_0[0], torch.zeros(1, 16, 16))
    assert torch.allclose(x_0[1], torch.ones(1, 16, 16))


def smoothing(x, t, labels):
    """A denoiser whose tiles disagree: zero padding darkens their borders, and each has its own brightness."""
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (2, 2, 2, 2)), 5, 1)
    return 0.8 * blurred + 0.2 * x.mean((1, 2, 3), keepdim=True)


def border_ratio(image, tile, starts):
    """Mean |step| across tile borders over the mean elsewhere, along the last axis."""
    steps = image.diff(dim=-1).abs().mean((0, 1, 2))
    borders = sorted({s - 1 for s in starts if s > 0} | {s + tile - 1 for s in starts if s + tile < image.shape[-1]})
    inside = [i for i in range(len(steps)) if i not in borders]
    return float(steps[borders].mean() / steps[inside].mean())


@pytest.mark.parametrize("task", ["denoise", "inpaint"])
def test_tiles_leave_no_seam(task):
    size, tile = (48, 48), 16
    grid = TileGrid(size, (tile, tile))
    denoiser = TiledDenoiser(Denoiser(smoothing, PROCESS), grid)
    truth = torch.nn.functional.interpolate(torch.randn(32, 1, 7, 7), size, mode="bicubic").clamp(-1, 1)
    known = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.5
    operator = Denoising((1, *size)) if task == "denoise" else Inpainting((1, *size), known)
    generator = torch.Generator().manual_seed(1)
    y = operator.H(truth + 0.2 * torch.randn(truth.shape, generator=generator))
    x = ddrm(
        denoiser,
        y,
        operator,
        0.2,
        timestep_grid(PROCESS.schedule, 20),
        noise=lambda: torch.randn(truth.shape, generator=generator),
    )
    starts = sorted({left for _, left in grid.corners})
    assert border_ratio(x, tile, starts) <= 1.05
    assert border_ratio(x.transpose(-1, -2), tile, starts) <= 1.05


def test_tiles_restored_separately_have_a_seam():
    """The control of the test above: its measure does detect seams."""
    denoiser = Denoiser(smoothing, PROCESS)
    torch.manual_seed(0)
    truth = torch.nn.functional.interpolate(torch.randn(32, 1, 7, 7), (48, 48), mode="bicubic").clamp(-1, 1)
    y = truth + 0.2 * torch.randn_like(truth)
    operator, grid = Denoising((1, 16, 16)), timestep_grid(PROCESS.schedule, 20)
    x = torch.cat(
        [
            ddrm(denoiser, y[..., :16, i : i + 16], operator, 0.2, grid, noise=lambda: torch.randn(32, 1, 16, 16))
            for i in (0, 16, 32)
        ],
        dim=-1,
    )
    assert border_ratio(x, 16, [0, 16, 32]) > 1.05


def test_restore_takes_an_image_larger_than_the_model(grey):
    model, prior = grey
    x = torch.cat([prior.sample(2), prior.sample(2, seed=1)], dim=-1)  # 12×24
    operator = Denoising((1, 12, 24))
    y = x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    restored = restore(model, y, operator, noise=0.2, samples=4, precision="fp32")
    assert restored.mean.shape == x.shape
    assert (restored.mean - x).square().mean() < 0.5 * (y - x).square().mean()
