"""An untrained teacher that is small enough for a test."""

import torch

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet

TIMESTEPS = 16  # the stages of a student of 2 steps: 8, 4, 2


def tiny_model(classes: int | None = None, prediction: str = "epsilon") -> Model:
    """A model of 8×8 grey images whose every parameter is random; with classes, the last row is null."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)
    network = UNet(config, (8, 8), 1, 1, None if classes is None else classes + 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    process = GaussianDiffusion(NoiseSchedule(make_betas("linear", TIMESTEPS, 1e-3, 0.2)), prediction, "fixed_small")
    names = None if classes is None else [f"class {index}" for index in range(classes)]
    return Model(network, process, image_shape=(1, 8, 8), class_names=names, null_label=classes)
