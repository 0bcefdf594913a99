"""The model card: what it shows, and that the Hub can read its front matter."""

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from interop_cases import small_network

from ddpm.diffusion.config import DiffusionConfig
from ddpm.distillation.config import StudentConfig
from ddpm.interop.card import add_metrics, add_samples, model_card
from ddpm.interop.diffusers import load_folder, save_folder
from ddpm.interop.storage import read_json
from ddpm.model import BUNDLED
from ddpm.training.config import Config

PROVENANCE = {
    "config": {"data": {"source": "flowers", "image_size": 8}, "training": {"steps": 100}},
    "data": {"images": 4317},
    "metrics": {"fid": 12.3456789, "n | reference": "10,000"},
    "seconds": 3600.5,
    "machine": "2 cores",
}


@pytest.mark.parametrize(("name", "config"), [("digits", Config), ("digits4", StudentConfig)])
def test_the_card_of_a_bundled_model_speaks_todays_language(name, config):
    folder = BUNDLED[name]
    card, extra = (folder / "README.md").read_text(), read_json(folder / "ddpm.json")
    assert f'ddpm.load("{name}")' in card
    assert "THIS_FOLDER" not in card
    config.model_validate(extra["provenance"]["config"])  # refuses the names of fields that have changed
    shown = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert shown == extra["provenance"]["config"]


def test_all_it_knows_is_there():
    extra = {"class_names": ["daisy", "rose"], "null_label": 2, "provenance": PROVENANCE}
    network = small_network(num_classes=3)
    text = model_card(network, DiffusionConfig().build(), extra, diffusers=True)
    card = ModelCard(text)
    assert card.data.library_name == "diffusers"
    parameters = f"{sum(p.numel() for p in network.parameters()):,}"
    for words in (
        parameters,
        "flowers",
        "4317",
        "12.3457",
        "n \\| reference",
        "data: {source: flowers, image_size: 8}",  # a section a line
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
    text = model_card(small_network(), DiffusionConfig().build(), {}, diffusers=False)
    assert ModelCard(text).data.library_name == "ddpm"
    for section in ("Data", "Training", "Metrics", "Configuration"):
        assert f"## {section}" not in text
    assert "## Limits" in text


@pytest.fixture
def folder(tmp_path):
    diffusion = DiffusionConfig().build()
    extra = {"class_names": None, "null_label": None, "provenance": PROVENANCE}
    save_folder(tmp_path / "model", small_network(), diffusion, image_shape=(3, 8, 8), extra=extra)
    return tmp_path / "model"


def test_samples_are_put_in_once(folder, tmp_path):
    (tmp_path / "grid.png").write_bytes(b"png")
    for caption in ("first", "second"):
        add_samples(folder, tmp_path / "grid.png", caption)
    text = (folder / "README.md").read_text()
    assert text.count("samples.png)") == 1
    assert text.index("## Use") < text.index("second") < text.index("## Limits")
    assert "first" not in text
    assert (folder / "samples.png").read_bytes() == b"png"


def test_metrics_are_merged_and_travel_on(folder):
    add_metrics(folder, {"fid": 3.5, "kid": 0.25})
    text = (folder / "README.md").read_text()
    assert "| fid | 3.5 |" in text
    assert "| kid | 0.25 |" in text
    assert "12.3457" not in text
    assert text.index("| kid") < text.index("## Configuration")
    assert load_folder(folder).extra["provenance"]["metrics"] == {**PROVENANCE["metrics"], "fid": 3.5, "kid": 0.25}


def test_metrics_of_a_folder_that_knew_nothing(tmp_path):
    save_folder(tmp_path / "m", small_network(), DiffusionConfig().build(), image_shape=(3, 8, 8), extra={})
    add_metrics(tmp_path / "m", {"fid": 1.0})
    assert "## Metrics\n\n| | |\n|---|---|\n| fid | 1 |\n\n## Limits" in (tmp_path / "m" / "README.md").read_text()
    assert load_folder(tmp_path / "m").extra == {"provenance": {"metrics": {"fid": 1.0}}}


def test_limits_can_be_told():
    extra = {"provenance": {"limits": "Only daisies."}}
    text = model_card(small_network(), DiffusionConfig().build(), extra, diffusers=True)
    assert text.rstrip().endswith("Only daisies.")


def test_the_hub_reads_the_metrics(folder):
    card = ModelCard.load(folder / "README.md")
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {"fid": 12.3456789}
    add_metrics(folder, {"KID: 100 images": 0.25, "fid": 3.5})
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert {(result.metric_type, result.metric_name): result.metric_value for result in results} == {
        ("fid", "fid"): 3.5,
        ("kid", "KID: 100 images"): 0.25,
    }
    assert {result.dataset_name for result in results} == {"flowers"}


def test_the_text_of_the_owner_is_kept(folder, tmp_path):
    card = ModelCard.load(folder / "README.md")
    card.data.license = "mit"
    story = "Mine.\n\n## Story\n\nHow `## Metrics` came about.\n\n### Why\n\n```python\n# a\n## b\n```\n\n## Data"
    card.text = card.text.replace("## Data", story)
    card.save(folder / "README.md")
    (tmp_path / "grid.png").write_bytes(b"png")
    add_metrics(folder, {"kid": 0.25})
    add_samples(folder, tmp_path / "grid.png", "Chosen.")
    found = ModelCard.load(folder / "README.md")
    assert found.data.license == "mit"
    text = (folder / "README.md").read_text()
    assert story in text
    assert "| kid | 0.25 |" in text
    (folder / "README.md").write_text("My own card, without any heading.\n")
    add_metrics(folder, {"fid": 1.5})
    assert (folder / "README.md").read_text().count("My own card, without any heading.") == 1
    assert "| fid | 1.5 |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("prediction", "words"), [("epsilon", "the noise ε"), ("x_0", "the clean image"), ("v", "v")])
def test_the_card_says_what_is_predicted(prediction, words):
    diffusion = DiffusionConfig(prediction=prediction, timesteps=70, variance="fixed_large").build()
    text = model_card(small_network(), diffusion, {}, diffusers=True)
    assert f"that predicts {words}" in text
    assert "over T = 70 steps; reverse variance fixed_large" in text
    assert "A DDPM for colour 8×8 images" in text


def test_results_of_others_stay_in_the_list(folder):
    card = ModelCard.load(folder / "README.md")
    card.data.eval_results.append(EvalResult("other-task", "set", "Set", "accuracy", 0.5, metric_name="theirs"))
    card.save(folder / "README.md")
    add_metrics(folder, {"kid": 0.25})
    found = {
        result.metric_name: result.metric_value for result in ModelCard.load(folder / "README.md").data.eval_results
    }
    assert found == {"theirs": 0.5, "fid": 12.3456789, "kid": 0.25}
