"""The mean colour of a data set of which not every image is read."""

import numpy as np
import pytest
import torch

from ddpm.data.datasets import MemoryDataset, Report
from ddpm.training import tracking


@pytest.mark.parametrize(
    ("count", "most", "read"), [(10, 4, [0, 3, 6, 9]), (10, 10, range(10)), (7, 3, [0, 3, 6]), (1, 5, [0])]
)
@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_mean_colours_are_those_of_the_images_that_were_read(monkeypatch, count, most, read, at_once):
    monkeypatch.setattr(tracking, "MEAN_OF", most)
    monkeypatch.setattr(tracking, "AT_ONCE", at_once)
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 5), dtype=np.uint8)
    found = tracking.channel_means(MemoryDataset(torch.from_numpy(images), None, None, Report("s")))
    expected = images[list(read)].astype(float).mean((0, 2, 3)) / 127.5 - 1
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
