"""The profile of a training step."""

from pathlib import Path

from experiments.speed.profile import busy, profiled


def test_busy_counts_the_gaps_between_overlapping_events() -> None:
    """0 to 4 ms, a gap of 2, 6 to 8 with an event inside, a gap of 1, 9 to 10: 3 of 10 ms idle, in two steps."""
    spans = [(6000.0, 8000.0), (0.0, 4000.0), (6500.0, 7000.0), (9000.0, 10_000.0), (1000.0, 2000.0)]
    assert busy(spans, 2) == {"milliseconds_per_step": 5.0, "idle": 0.3}


def test_profile_names_the_operators_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "data: {source: digits, image_size: 28, channels: 1}\n"
        "network: {channels: 8, channel_mult: [1, 1], blocks: 1, attention: [], groups: 4}\n"
        "training: {steps: 9, batch_size: 2, warmup: 1, preview_every: 0, precision: fp32}\n"
    )
    found = profiled(str(tmp_path / "tiny.yaml"), 1)
    assert "aten::convolution_backward" in {row["name"] for row in found["top"]}
    assert 0 < sum(row["fraction"] for row in found["top"]) <= 1
