"""Measurements for docs/guides/scale.md, at toy size, and the constants that its arithmetic uses."""

import json
import re

import pytest

from ddpm.networks.inference import count_flops
from ddpm.training import load_config
from experiments.lib import ROOT, parameter_count
from experiments.speed import scale
from experiments.tables import TABLES, table


def test_checkpoint_has_16_bytes_per_parameter(tmp_path):
    """Weights, average and two moments of Adam, all float32; the names add little."""
    found = scale.checkpoint("mnist", tmp_path)
    assert found["parameters"] == parameter_count(scale.network_of("mnist"))
    assert found["bytes"] == pytest.approx(16 * found["parameters"], rel=0.02)


def test_main_writes_what_the_tables_show(tmp_path, monkeypatch):
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
    for name in (name for name in TABLES if name.startswith("scale_")):
        assert "not run" not in table(name, tmp_path)
    assert "| 2 | 1 | 160 | 2.00 |" in table("scale_training", tmp_path)


@pytest.mark.parametrize("preset", ["cifar10", "lsun_bedroom256"])
def test_page_agrees_with_the_presets(preset):
    page = (ROOT / "docs" / "guides" / "scale.md").read_text()
    config, network = load_config(preset), scale.network_of(preset)
    assert f"{parameter_count(network):,}" in page
    assert f"{config.training.steps:,} × {config.training.batch_size}" in page
    assert re.search(rf"\| F \|.* {count_flops(network) / 1e9:.3g} G ", page)
