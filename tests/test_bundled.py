"""The models in the package: small enough to ship, and they draw what they are asked for."""

import pytest

import ddpm
from ddpm.common.pixels import to_uint8
from ddpm.evaluation.classifier import builtin_classifier, predict
from ddpm.model import BUNDLED


@pytest.mark.parametrize(("names", "megabytes"), [(("digits", "digits4"), 6), (("photos32",), 12)])
def test_they_are_small(names, megabytes):
    files = [file for name in names for file in BUNDLED[name].rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= megabytes * 1e6


def test_the_photographs_show_what_was_asked_for():
    """By a classifier of digits, clothes and the ten classes of CIFAR-10, which is right for 79% of the test images."""
    model = ddpm.load("photos32")
    classifier, names = builtin_classifier()
    images = model.sample(40, steps=10, sampler="dpm++", labels=list(range(10)) * 4, guidance=2)
    assert images.shape == (40, 3, 32, 32)
    read = [names[index] for index in predict(classifier, to_uint8(images)).argmax(1)]
    asked = [f"cifar10/{model.class_names[index % 10]}" for index in range(40)]
    assert sum(one == other for one, other in zip(read, asked, strict=True)) >= 16  # 4 by chance
