"""A small untrained model, for tests that need one of their own."""

import torch

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a random value: a zero last layer would hide everything before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def tiny_model(classes: int | None = None, prediction: str = "epsilon", timesteps: int = 50) -> Model:
    """An untrained model of 8×8 grey images whose every parameter is random; with classes, the last row is null."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)
    network = UNet(config, (8, 8), 1, 1, None if classes is None else classes + 1)
    process = GaussianDiffusion(NoiseSchedule(make_betas("linear", timesteps, 1e-3, 0.2)), prediction, "fixed_small")
    names = None if classes is None else [f"class {index}" for index in range(classes)]
    return Model(
        randomise(network), process, image_shape=(1, 8, 8), class_names=names, null_label=classes, provenance={}
    )
