"""The model card: what it shows, and that the Hub can read its front matter."""

import pytest
from huggingface_hub import ModelCard
from interop_cases import small_network

from ddpm.interop.card import add_samples, model_card
from ddpm.process.config import ProcessConfig

PROVENANCE = {
    "config": {"data": {"source": "flowers", "image_size": 8}, "training": {"steps": 100}},
    "data": {"images": 4317},
    "metrics": {"fid": 12.3456789, "n | reference": "10,000"},
    "seconds": 3600.5,
    "machine": "2 cores",
}


def test_all_it_knows_is_there():
    extra = {"class_names": ["daisy", "rose"], "null_label": 2, "provenance": PROVENANCE}
    network = small_network(num_classes=3)
    text = model_card(network, ProcessConfig().process(), extra, diffusers=True)
    card = ModelCard(text)
    assert card.data.library_name == "diffusers"
    parameters = f"{sum(p.numel() for p in network.parameters()):,}"
    for words in (
        parameters,
        "flowers",
        "4317",
        "12.3457",
        "n \\| reference",
        "3600.5",
        "2 cores",
        "daisy",
        "guidance",
    ):
        assert words in text, words
    for section in ("Use", "Data", "Training", "Metrics", "Configuration", "Limits"):
        assert f"\n## {section}\n" in text
    assert "class_labels" in text


def test_of_nothing_known_it_says_nothing():
    text = model_card(small_network(), ProcessConfig().process(), {}, diffusers=False)
    assert ModelCard(text).data.library_name == "ddpm"
    for section in ("Data", "Training", "Metrics", "Configuration"):
        assert f"## {section}" not in text
    assert "## Limits" in text


def test_samples(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(model_card(small_network(), ProcessConfig().process(), {}, diffusers=True))
    add_samples(file, "16 samples")
    text = file.read_text()
    assert text.index("samples.png)") < text.index("16 samples") < text.index("## Use")


@pytest.mark.parametrize("limits", ["Only daisies."])
def test_limits_can_be_told(limits):
    text = model_card(small_network(), ProcessConfig().process(), {"provenance": {"limits": limits}}, diffusers=True)
    assert text.rstrip().endswith(limits)
