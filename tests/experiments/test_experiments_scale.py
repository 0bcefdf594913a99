"""What is measured for docs/scale.md, at toy size, and what its arithmetic takes for known."""

import json
import re

import pytest

from ddpm.networks.inference import count_flops
from ddpm.training import load_config
from experiments import scale
from experiments.record import ROOT
from experiments.scale_tables import SCALE_TABLES
from experiments.tables import table


def test_a_checkpoint_has_the_bytes_that_the_page_counts(tmp_path):
    """Weights, average and two moments in float32; the rest is names."""
    found = scale.checkpoint("mnist", tmp_path)
    assert found["parameters"] == scale.parameters_of("mnist")
    assert found["bytes"] == pytest.approx(16 * found["parameters"], rel=0.02)


def test_the_tables_show_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scale, "training", lambda p, t, *_: {"processes": p, "threads": t, "images_per_second": 80.0 * p}
    )
    monkeypatch.setattr(
        scale, "reduction", lambda preset, _: {"preset": preset, "parameters": 10, "bytes": 40, "seconds": 0.5}
    )
    for size, toy in {"STEPS": 2, "PRESETS": scale.PRESETS[:1], "PHOTOGRAPHS": 8}.items():
        monkeypatch.setattr(scale, size, toy)
    monkeypatch.setattr("sys.argv", ["scale", "--out", str(tmp_path)])
    scale.main()
    found = json.loads((tmp_path / "scale.json").read_text())
    assert [row["images"] for row in found["decoding"]["rows"]] == [8, 8, 8]
    assert {row["images_per_second"] > 0 for row in found["decoding"]["rows"]} == {True}
    for name in SCALE_TABLES:
        assert "not run" not in table(name, tmp_path)
    assert "| 2 | 1 | 160 | 2.00 |" in table("scale_training", tmp_path)


@pytest.mark.parametrize("preset", ["cifar10", "lsun_bedroom256"])
def test_the_page_knows_the_presets(preset):
    page = (ROOT / "docs" / "scale.md").read_text()
    config, network = load_config(preset), scale.network_of(preset)
    assert f"{scale.parameters_of(preset):,}" in page
    assert f"{config.training.steps:,} × {config.training.batch_size}" in page
    assert re.search(rf"\| F \|.* {count_flops(network) / 1e9:.3g} G ", page)
