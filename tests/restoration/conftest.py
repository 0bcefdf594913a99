"""A model whose images are Gaussian: its denoiser and every posterior are known in closed form."""

import pytest
import torch
from torch import nn

from ddpm.common.pixels import save_picture, to_uint8
from ddpm.model import Model
from experiments.restoration.gaussian import GaussianPrior


class GaussianNetwork(nn.Module):
    """The closed form as a module with a parameter, so that a Model can hold it."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.weight = denoiser, nn.Parameter(torch.ones(1))

    def forward(self, x_t, t, labels):
        return self.denoiser.network(x_t, t, labels)


def gaussian_model(shape, **options):
    prior = GaussianPrior.smooth(shape, deviation=0.3, **options)
    denoiser = prior.denoiser()
    return Model(GaussianNetwork(denoiser), denoiser.diffusion, image_shape=shape), prior


@pytest.fixture(scope="session")
def grey():
    """(model, prior) of 12×12 grey images."""
    return gaussian_model((1, 12, 12))


@pytest.fixture(scope="session")
def colour():
    """(model, prior) of 8×8 colour images."""
    return gaussian_model((3, 8, 8))


@pytest.fixture
def pictures(grey, tmp_path):
    """Six clean pictures of the prior, one of them in a sub-folder and larger than the model."""
    _, prior = grey
    folder = tmp_path / "clean"
    for index, image in enumerate(prior.sample(5)):
        save_picture(to_uint8(image), folder / f"{index}.png")
    wide = torch.cat([*prior.sample(2, seed=9)], dim=-1)
    save_picture(to_uint8(wide), folder / "sub" / "wide.png")
    return folder
