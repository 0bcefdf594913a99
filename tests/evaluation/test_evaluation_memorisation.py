"""The search for nearest training images: correct, and in blocks of bounded size."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.evaluation import memorisation
from ddpm.evaluation.memorisation import feature_neighbours, pixel_neighbours
from ddpm.evaluation.opening import open_images


class LargestMatrix(TorchDispatchMode):
    """The number of elements of the largest floating-point matrix created in the block."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, torch.Tensor) and answer.is_floating_point() and answer.ndim > 1:
            self.most = max(self.most, answer.numel())
        return answer


@pytest.mark.parametrize("values", [2**25, 192 * 10])
def test_pixel_neighbours_are_found_in_blocks(tmp_path, monkeypatch, values):
    """Also mirrored; 40 images, or ten, are compared at once."""
    monkeypatch.setattr(memorisation, "VALUES", values)
    monkeypatch.setattr(memorisation, "BLOCK", 40)
    random = np.random.default_rng(0)
    training, asked = (random.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for n in (70, 100))
    asked[5], asked[6] = training[33], training[44, :, ::-1]
    for name, images in (("training", training), ("asked", asked)):
        np.savez(tmp_path / name, arr_0=images)
    queries, base = (open_images(str(tmp_path / f"{name}.npz")) for name in ("asked", "training"))
    with LargestMatrix() as seen:
        found, rows = pixel_neighbours(queries, base)
    assert rows.tolist() == list(range(100))
    assert seen.most <= min(values, 40 * 192)
    assert (found.index[5], found.distance[5], found.index[6], found.distance[6]) == (33, 0, 44, 0)
    distances = [
        np.linalg.norm((turned[:, None] / 255.0 - training / 255.0).reshape(100, 70, -1), axis=2)
        for turned in (asked, asked[:, :, ::-1])
    ]
    np.testing.assert_allclose(found.distance, np.minimum(*distances).min(1), atol=1e-5)
    assert found.index.tolist() == np.minimum(*distances).argmin(1).tolist()


def test_feature_neighbours_are_the_nearest(monkeypatch):
    monkeypatch.setattr(memorisation, "BLOCK", 7)
    random = np.random.default_rng(0)
    asked, base = (random.normal(size=(n, 5)).astype(np.float32) for n in (20, 30))
    found = feature_neighbours(asked, base)
    distances = np.linalg.norm(asked[:, None] - base, axis=2)
    assert found.index.tolist() == distances.argmin(1).tolist()
    np.testing.assert_allclose(found.distance, distances.min(1), rtol=1e-5)
