"""Progressive pictures of a model whose behaviour is known: the exact network for Gaussian pixels."""

import pytest
import torch
from PIL import Image
from torch import nn

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from experiments.progressive import (
    predictions_over_time,
    progressive_coding,
    progressive_generation,
    save_sheet,
    shared_latents,
)

STD, T = 0.3, 30
SCHEDULE = NoiseSchedule(make_betas("linear", T, 0.005, 0.5))


class ExactNetwork(nn.Module):
    """E[x_0|x_t] for pixels N(mean of the class, STD²)."""

    def __init__(self, means=(0.0,)):
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means))

    def forward(self, x_t, t, labels):
        mean = self.means[torch.zeros_like(t).long() if labels is None else labels].reshape(-1, 1, 1, 1)
        alpha_bar = SCHEDULE.alphas_cumprod.float()[t.long()].reshape(-1, 1, 1, 1)
        gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        return mean + gain * (x_t - alpha_bar.sqrt() * mean)


def model_of(means=(0.0,), **labels):
    process = GaussianDiffusion(SCHEDULE, "x_0", "fixed_large")
    return Model(ExactNetwork(means), process, image_shape=(1, 8, 8), **labels)


def test_predictions_over_time_end_at_the_samples():
    model = model_of()
    found = list(predictions_over_time(model, range(5), moments=4, seed=3, batch_size=2, precision="fp32"))
    assert [batch for batch, _, _ in found] == [[0, 1], [2, 3], [4]]
    images = torch.cat([images for _, _, images in found])
    assert images.shape == (5, 4, 1, 8, 8)
    for _, times, _ in found:
        assert times == [29, 19, 10, 0]
    samples = model.sample(5, sampler="ancestral", steps=T, seed=3, batch_size=2, precision="fp32")
    torch.testing.assert_close(images[:, -1], samples)
    # From noise alone the best guess is the data's mean; detail appears on the way.
    spread = images.std((0, 2, 3, 4))
    assert (spread.diff() > 0).all()


def test_shared_latents_have_the_posterior_standard_deviation():
    sheet = shared_latents(model_of(), depths=(1.0, 0.6, 0.2), siblings=12, seed=1)
    assert sheet.images.shape == (3, 13, 1, 8, 8)
    assert sheet.row_titles == ["t = 29", "t = 17", "t = 5"]
    between = sheet.images[:, 1:].std(1).mean((1, 2, 3))
    # p(x_0|x_t) of the exact chain has the posterior's spread.
    alpha_bar = SCHEDULE.alphas_cumprod[[29, 17, 5]]
    exact = (STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)).sqrt()
    torch.testing.assert_close(between.double(), exact, rtol=0.15, atol=0)
    again = shared_latents(model_of(), depths=(0.6,), siblings=12, seed=1)
    torch.testing.assert_close(again.images[0], sheet.images[1])


def test_shared_latents_have_the_requested_class():
    model = model_of((0.6, -0.6), class_names=["light", "dark"])
    assert shared_latents(model, labels="dark", siblings=4).images[:, 1:].mean() < -0.4
    assert shared_latents(model, labels=0, siblings=4).images[:, 1:].mean() > 0.4


def test_progressive_coding_has_the_posterior_error():
    images = (STD * torch.randn(40, 1, 8, 8)).clamp(-1, 1)
    sheet = progressive_coding(model_of(), images, moments=5)
    assert sheet.images.shape == (40, 6, 1, 8, 8)
    assert sheet.column_titles == ["t = 29", "t = 22", "t = 14", "t = 7", "t = 0", "original"]
    assert torch.equal(sheet.images[:, -1], images)
    rmse = (sheet.images[:, :-1] - images[:, None]).square().mean((0, 2, 3, 4)).sqrt()
    alpha_bar = SCHEDULE.alphas_cumprod[[29, 22, 14, 7, 0]]
    exact = (STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)).sqrt()
    torch.testing.assert_close(rmse.double(), exact, rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["sheet.png", "sheet.pdf"])
def test_save_sheet_writes_one_file(tmp_path, name):
    save_sheet(progressive_generation(model_of(), 3, moments=6), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 1.5 * picture.height


def test_progressive_pictures_refuse_wrong_arguments():
    with pytest.raises(UserError, match="moments"):
        list(predictions_over_time(model_of(), [0], moments=8, steps=5))
    with pytest.raises(UserError, match="depths"):
        shared_latents(model_of(), depths=(1.5,))
