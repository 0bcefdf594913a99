"""Networks of somebody else: any module of (x_t, whole timesteps t, labels) is sampled, restored with and traced."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import ddpm
from ddpm.common.errors import UserError
from ddpm.diffusion.schedule import make_betas
from ddpm.evaluation.image_sets import GeneratedImages
from ddpm.restoration import Inpainting

T = 20
BETAS = make_betas("linear", T, 1e-3, 0.5)


class TableNetwork(nn.Module):
    """A convolution with a table of timesteps and of classes: it cannot take a fractional t."""

    def __init__(self, classes: int | None = None):
        super().__init__()
        self.times = nn.Embedding(T, 4)
        self.classes = None if classes is None else nn.Embedding(classes, 4)
        self.conv_in, self.conv_out = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x_t, t, labels):
        assert t.dtype == torch.int64
        assert t.shape == (len(x_t),)
        assert (labels is None) == (self.classes is None)
        h = self.times(t) if self.classes is None else self.times(t) + self.classes(labels)
        return self.conv_out(torch.tanh(self.conv_in(x_t) + h[:, :, None, None]))


def foreign_model(classes=None, network=None):
    names = None if classes is None else [str(index) for index in range(classes)]
    diffusion = ddpm.GaussianDiffusion(ddpm.NoiseSchedule(BETAS))
    return ddpm.Model(network or TableNetwork(classes), diffusion, image_shape=(1, 8, 8), class_names=names)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++sde", "unipc", "heun"])
def test_a_foreign_network_is_sampled_as_by_a_plain_loop(sampler):
    model = foreign_model()
    images = model.sample(3, sampler=sampler, steps=5)
    assert images.shape == (3, 1, 8, 8)
    if sampler != "ddim":
        return
    grid = ddpm.samplers.timestep_grid(model.diffusion.schedule, 5)
    x = torch.stack([torch.randn(1, 8, 8, generator=ddpm.image_generator(0, index)) for index in range(3)])
    with torch.no_grad():
        for t, t_prev in pairwise(grid):
            alpha, sigma = model.diffusion.schedule.alpha_sigma(t)
            alpha_prev, sigma_prev = model.diffusion.schedule.alpha_sigma(t_prev)
            epsilon = model.network(x, torch.full((3,), int(t)), None)
            x_0 = ((x - sigma * epsilon) / alpha).clamp(-1, 1)
            x = alpha_prev * x_0 + sigma_prev * (x - alpha * x_0) / sigma
    torch.testing.assert_close(images, x.clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_foreign_network_gets_labels():
    model = foreign_model(classes=3)
    zero, one = model.sample(1, labels=0, steps=4), model.sample(1, labels=1, steps=4)
    assert not torch.equal(zero, one)
    with pytest.raises(UserError, match="needs labels"):
        model.denoiser()


def test_a_foreign_network_computes_in_float32_unless_told():
    class Typed(TableNetwork):
        def forward(self, x_t, t, labels):
            seen.append(x_t.dtype)
            return super().forward(x_t, t, labels)

    seen: list[torch.dtype] = []
    model = foreign_model(network=Typed())
    model.sample(1, steps=1)
    model.sample(1, steps=1, precision="bf16")
    assert seen == [torch.float32, torch.bfloat16]
    assert ddpm.SamplingOptions().resolved(model).precision == "fp32"


class Still(nn.Module):
    """A network without weights: it predicts no noise."""

    def forward(self, x_t, t, labels):
        return torch.zeros_like(x_t)


def test_a_network_without_weights_is_sampled_on_the_cpu():
    model = foreign_model(network=Still())
    assert model.device == torch.device("cpu")
    assert model.sample(1, steps=2).shape == (1, 1, 8, 8)
    assert model.weights_hash


def test_a_foreign_network_is_traced_restored_with_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    model = foreign_model()
    options = {"sampler": "ancestral", "steps": 4, "seed": 3}
    traced = ddpm.trace(model, num=2, frames=3, **options)
    assert torch.equal(traced.images, model.sample(2, **options))
    operator = Inpainting((1, 8, 8), torch.ones(8, 8, dtype=torch.bool).tril())
    original = torch.zeros(1, 1, 8, 8)
    restored = ddpm.restore(model, operator.H(original), operator, steps=4)
    assert restored.mean.shape == (1, 1, 8, 8)
    drawn = GeneratedImages(model, 3, steps=4)
    drawn.prepare(progress=False)
    assert drawn[:].shape == (3, 1, 8, 8)


def test_saving_a_foreign_network_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"TableNetwork .*state_dict"):
        foreign_model().save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
