"""Every contestant trains, draws and is judged, at toy size."""

import json

import numpy as np
import pytest

pytest.importorskip("denoising_diffusion_pytorch", reason="the peers are an extra of their own")

from ddpm.data import open_dataset
from ddpm.training import dry_run, load_config
from experiments import peers
from experiments.tables import table
from experiments.time_to_quality import QUIET, TITLES, Match, judge, train_contestant

SIDE, NUM = 8, 70


@pytest.fixture
def match(tmp_path, monkeypatch):
    """A tiny network on images of a grey that noise would not have, measured in no time."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    for module in (dry_run, peers):
        monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
        monkeypatch.setattr(module, "FEWEST", 1)
    monkeypatch.setattr(peers, "ANCESTRAL", 2)
    monkeypatch.setattr(peers, "DDIM", 2)
    pixels = np.random.default_rng(0).integers(200, 256, (NUM, SIDE, SIDE, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    network = {"network.channels": 8, "network.groups": 4, "network.channel_mult": [1, 2], "network.attention": []}
    data = {"data.source": str(tmp_path / "images.npz"), "data.image_size": SIDE, "data.labels": False}
    overrides = QUIET | network | data | {"training.batch_size": 4}
    return Match("mnist", data["data.source"], overrides, num=NUM, batch=40)


def test_all_contestants(match, tmp_path):
    runs = tmp_path / "runs"
    for name in TITLES:
        trained = train_contestant(name, 1e-6, runs, match)
        assert trained["steps"] == 2
        assert trained["images"] == 2 * trained["batch_size"]
        assert train_contestant(name, 1e-6, runs, match) == trained  # not again
    result = judge(runs, match, features="builtin", command="none", results=tmp_path, pictures=tmp_path)
    assert [row["name"] for row in result["rows"]] == list(TITLES)
    assert all(row["frechet_distance"] > 0 for row in result["rows"])
    sizes = {row["name"]: row["training"]["parameters"] for row in result["rows"]}
    assert sizes["ours"] == sizes["diffusers"]
    for name in TITLES:
        pixels = np.load(runs / name / "samples.npz")["arr_0"]
        assert pixels.shape == (NUM, SIDE, SIDE, 1)
    assert json.loads((tmp_path / "time_to_quality.json").read_text()) == result
    assert (tmp_path / "time_to_quality.png").exists()
    assert table("time_to_quality", tmp_path).count("\n") == 2 + len(TITLES)


def test_peers_see_the_images_in_their_range(match):
    dataset = open_dataset(load_config(match.preset, match.overrides).data)
    for low, least in ((-1.0, 200 / 127.5 - 1), (0.0, 200 / 255)):
        (batch,) = next(peers.endless(dataset, 16, low))
        assert batch.shape == (16, 1, SIDE, SIDE)
        assert float(batch.min()) == pytest.approx(least, abs=0.02)
        assert float(batch.max()) == pytest.approx(1, abs=0.02)
