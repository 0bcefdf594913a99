"""The built-in digits are what their provenance says."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from ddpm.data.sources import DIGITS, open_dataset

DATA = os.environ.get("DDPM_DATA")  # read before the fixtures hide it


def test_digits_file_has_the_documented_layout():
    with np.load(DIGITS) as archive:  # numpy's own reader
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (10_000, 28, 28, 1)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [1000] * 10
    assert DIGITS.stat().st_size < 2_000_000


def test_digits_pixels_have_not_changed():
    dataset = open_dataset("digits", image_size=28, channels=1, labels=True)
    digest = hashlib.sha256(dataset.images.numpy().tobytes() + dataset.labels.numpy().tobytes()).hexdigest()
    assert digest == "19e0663f22f3a6ff4406bb19e2bf316a2b6e00d8869244afc7f3a6d82dcbe361"


@pytest.mark.skipif(not DATA or not Path(DATA, "mnist").exists(), reason="needs MNIST under DDPM_DATA")
def test_digits_are_the_first_thousand_of_each_digit_in_mnist():
    folder = Path(DATA, "mnist")
    pixels = np.fromfile(folder / "train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.fromfile(folder / "train-labels-idx1-ubyte", np.uint8)[8:]
    seen, kept = [0] * 10, []
    for row, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= 1000:
            kept.append(row)
    dataset = open_dataset("digits", image_size=28, channels=1, labels=True)
    assert (dataset.images[:, 0].numpy() == pixels[kept]).all()
    assert (dataset.labels.numpy() == labels[kept]).all()
