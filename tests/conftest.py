"""Small models that every room's tests may ask for."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from tiny import tiny_model

from ddpm.model import Model

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


@pytest.fixture
def model() -> Model:
    return tiny_model()


@pytest.fixture
def conditional_model() -> Model:
    return tiny_model(classes=3)
