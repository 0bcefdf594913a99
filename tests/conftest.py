"""Small models that every room's tests may ask for."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet

torch.set_num_threads(1)  # pytest runs a worker a core

# a busy machine is slow, which is no failure, and what fails must fail again
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium without a window, for the tests of pages."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def same_start():
    """Every test begins alike, whatever ran before it: some code chooses the threads of its process, and other threads
    round otherwise."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


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


@pytest.fixture
def model() -> Model:
    return tiny_model()


@pytest.fixture
def conditional_model() -> Model:
    return tiny_model(classes=3)
