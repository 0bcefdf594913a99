"""Every contestant trains, samples and is evaluated, at toy size."""

import json

import numpy as np
import pytest

pytest.importorskip("denoising_diffusion_pytorch", reason="needs the extra `peers`")

from ddpm.data import open_dataset
from ddpm.training import dry_run, load_config
from experiments.quality import time_to_quality
from experiments.quality.time_to_quality import QUIET, TITLES, Match, endless_batches, evaluate_all, train_contestant
from experiments.tables import table

SIDE, NUM = 8, 70


@pytest.fixture
def match(tmp_path, monkeypatch):
    """Tiny network on bright images, which random noise would not give; nothing is timed for long."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    for module in (dry_run, time_to_quality):
        monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
        monkeypatch.setattr(module, "FEWEST", 1)
    monkeypatch.setattr(time_to_quality, "ANCESTRAL", 2)
    monkeypatch.setattr(time_to_quality, "DDIM", 2)
    pixels = np.random.default_rng(0).integers(200, 256, (NUM, SIDE, SIDE, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    network = {"network.channels": 8, "network.groups": 4, "network.channel_mult": [1, 2], "network.attention": []}
    data = {"data.source": str(tmp_path / "images.npz"), "data.image_size": SIDE, "data.labels": False}
    overrides = QUIET | network | data | {"training.batch_size": 4}
    return Match("mnist", data["data.source"], overrides, num=NUM, batch=40)


def test_all_contestants_are_trained_and_evaluated(match, tmp_path):
    runs = tmp_path / "runs"
    for name in TITLES:
        trained = train_contestant(name, 1e-6, runs, match)
        assert trained["steps"] == 2
        assert trained["images"] == 2 * trained["batch_size"]
        assert train_contestant(name, 1e-6, runs, match) == trained  # not again
    result = evaluate_all(runs, match, features="builtin", results=tmp_path, pictures=tmp_path)
    assert [row["name"] for row in result["rows"]] == list(TITLES)
    assert all(row["frechet_distance"] > 0 for row in result["rows"])
    sizes = {row["name"]: row["training"]["parameters"] for row in result["rows"]}
    assert sizes["ours"] == sizes["diffusers"]
    assert json.loads((tmp_path / "time_to_quality.json").read_text()) == result
    for name in TITLES:
        pixels = np.load(runs / name / "samples.npz")["arr_0"]
        assert pixels.shape == (NUM, SIDE, SIDE, 1)
        assert (tmp_path / f"time_to_quality_{name}.png").exists()
    assert table("time_to_quality", tmp_path).count("\n") == 2 + len(TITLES)
    (runs / "lucidrains" / "trained.json").unlink()
    again = evaluate_all(runs, match, features="builtin", results=tmp_path, pictures=tmp_path)
    assert again["rows"] == result["rows"]  # one that is not trained here stays


def test_endless_batches_scales_images_to_the_range(match):
    dataset = open_dataset(load_config(match.preset, match.overrides).data)
    for low, least in ((-1.0, 200 / 127.5 - 1), (0.0, 200 / 255)):
        (batch,) = next(endless_batches(dataset, 16, low))
        assert batch.shape == (16, 1, SIDE, SIDE)
        assert float(batch.min()) == pytest.approx(least, abs=0.02)
        assert float(batch.max()) == pytest.approx(1, abs=0.02)
