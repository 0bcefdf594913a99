"""Small models that the tests of exports share."""

import torch

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet


def random_model(classes: int | None = None, channels: int = 1, learns_variance: bool = False) -> Model:
    """A model of 8×8 images and 50 timesteps whose every parameter is random; with classes, the last row is null."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)
    rows, outputs = None if classes is None else classes + 1, channels * (2 if learns_variance else 1)
    network = UNet(config, (8, 8), channels, outputs, rows)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    variance = "learned_range" if learns_variance else "fixed_small"
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 50, 1e-3, 0.2)), "epsilon", variance)
    names = None if classes is None else [f"class {index}" for index in range(classes)]
    return Model(network, diffusion, image_shape=(channels, 8, 8), class_names=names, null_label=classes)


def exportable_model() -> Model:
    """Grey images of three classes and a null class; predicts v, with weights that half precision holds exactly."""
    model = random_model(classes=3)
    model.class_names = ["cat", "</script>", "dog, wet"]
    model.diffusion = GaussianDiffusion(model.diffusion.schedule, "v", "fixed_small")
    with torch.no_grad():
        model.network.class_embedding.weight.mul_(30)  # or the class would be lost in so small a network
        model.network.conv_out.weight.mul_(5)
        for parameter in model.network.parameters():
            parameter.copy_(parameter.half().float())
    return model
