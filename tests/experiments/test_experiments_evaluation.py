"""Likelihood of an untrained model and another one, at toy size."""

import json

import numpy as np
import torch
from PIL import Image

from experiments.evaluation import bits_per_dim, untrained
from experiments.tables import table


def test_bits_per_dim_codes_the_same_images_by_every_model(conditional_model, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", arr_0=pixels, arr_1=np.arange(12) % 3)
    models = {"untrained": untrained(conditional_model), "other": conditional_model}
    folders = {"results": tmp_path, "pictures": tmp_path}
    result = bits_per_dim(models, str(tmp_path / "test.npz"), 10, timesteps=10, **folders)
    assert json.loads((tmp_path / "bits_per_dim.json").read_text()) == result
    assert [(row["images"], row["timesteps_per_image"]) for row in result["rows"]] == [(10, 10), (10, 10)]
    for row in result["rows"]:
        assert row["bits_per_dim"] > 8  # the bits of uniformly random pixels without any model
    assert Image.open(tmp_path / "bits_per_dim.png").size[0] > 1000
    assert f"{result['rows'][1]['bits_per_dim']:.3f} ±" in table("bits_per_dim", tmp_path)


def test_untrained_model_predicts_almost_zero(conditional_model):
    fresh = untrained(conditional_model)
    x_t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) % 3
    predicted = fresh.network(x_t, torch.full((4,), 10.0), labels)
    assert predicted.abs().max() < 1e-2 < conditional_model.network(x_t, torch.full((4,), 10.0), labels).abs().max()
