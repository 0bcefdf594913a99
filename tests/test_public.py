"""The public names of the package, and what importing it costs."""

import subprocess
import sys

import pytest

import ddpm

NAMES = [
    "Denoiser",
    "GaussianDiffusion",
    "Model",
    "NoiseSchedule",
    "SamplingOptions",
    "as_deepinv",
    "evaluate",
    "image_generator",
    "load",
    "load_config",
    "open_dataset",
    "restore",
    "samplers",
    "save_grid",
    "trace",
    "train",
]
PACKAGES = [
    "data",
    "diffusion",
    "editing",
    "evaluation",
    "interop",
    "networks",
    "plotting",
    "restoration",
    "samplers",
    "training",
]


def test_public_names_are_listed_and_resolve():
    assert sorted(ddpm.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(ddpm))
    for name in NAMES:
        assert getattr(ddpm, name).__name__.rpartition(".")[2] == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        _ = ddpm.sampel


def test_import_does_not_import_torch():
    code = "import sys, ddpm; dir(ddpm); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_can_be_imported_in_any_order():
    for first in ("trace", "evaluate", "train", "restore", "samplers"):
        code = (
            f"import ddpm; from ddpm import {first}; from ddpm import *; assert ddpm.{first} is {first}; load('digits')"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_list_names_that_exist(package):
    module = __import__(f"ddpm.{package}", fromlist=["*"])
    assert module.__all__
    for name in module.__all__:
        assert hasattr(module, name)
