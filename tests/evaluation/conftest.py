"""Fixtures of the evaluation tests."""

import pytest
import torch

from ddpm.data import open_dataset
from ddpm.diffusion.config import DiffusionConfig
from ddpm.evaluation.features import load_features
from ddpm.model import Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache for this test alone, and one process."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits():
    """4,000 digits, mixed, as (uint8 N,H,W,1; labels)."""
    data = open_dataset("digits", image_size=28, channels=1, labels=True)
    images, labels = data.draw(0, range(4000))
    return images.permute(0, 2, 3, 1).numpy(), labels.numpy()


@pytest.fixture(scope="module")
def network():
    return load_features("builtin", torch.device("cpu"))


@pytest.fixture(scope="module")
def model():
    """A class-conditional model of 8x8 images that is not trained."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)
    unet = UNet(config, (8, 8), in_channels=3, out_channels=3, num_classes=4)
    process = DiffusionConfig(timesteps=8).build()
    return Model(unet, process, image_shape=(3, 8, 8), class_names=["a", "b", "c"], null_label=3)
