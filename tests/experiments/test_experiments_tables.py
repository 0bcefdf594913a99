"""Tables in the docs agree with the results, and the commands of the docs exist."""

import argparse
import importlib.util
import json
import re
import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from ddpm.networks.unet import UNet
from ddpm.samplers import DEFAULT_SAMPLER, SAMPLERS
from ddpm.training import load_config
from experiments import table_rows
from experiments.lib import RESULTS, ROOT, command
from experiments.quality.headline import HEADLINES
from experiments.tables import GALLERIES, MARKED, TABLES, gallery, pages, rendered, table


def documented() -> list[str]:
    """Commands of experiments in the docs, each once."""
    texts = [page.read_text(encoding="utf-8") for page in pages()]
    return sorted({found for text in texts for found in re.findall(r"python -m experiments\.[^`#|\n]+", text)})


CONFIGURATIONS = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_docs_agree_with_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert rendered(text) == text, "run: python -m experiments.tables"
    assert text.count("<!-- table: ") + text.count("<!-- pictures: ") == len(MARKED.findall(text)), "a mark has no end"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_results_contain_no_absolute_path(path):
    def texts(value):
        if isinstance(value, dict):
            value = list(value.values())
        return [text for part in value for text in texts(part)] if isinstance(value, list) else [value]

    found = [text for text in texts(json.loads(path.read_text())) if isinstance(text, str)]
    assert [text for text in found if any(word.strip("/") and Path(word).is_absolute() for word in text.split())] == []


def test_rendered_replaces_a_wrong_number(tmp_path):
    page = "before\n<!-- table: real_against_real -->\n| 3.2 |\n<!-- end of table -->\nafter\n"
    assert "not run" in rendered(page, tmp_path)
    figures = {"first_images_twice": {"n": 10, "fid": 2e-9}}
    figures["test_against_train"] = {"settings": {"n": 500}, "metrics": {"fid": {"value": 3.1415}}}
    (tmp_path / "real_against_real.json").write_text(json.dumps(figures))
    now = rendered(page, tmp_path)
    assert "| 3.14 |" in now
    assert now.startswith("before\n")
    assert now.endswith("-->\nafter\n")
    assert rendered(now, tmp_path) == now


@pytest.mark.parametrize("name", TABLES)
def test_table_says_what_was_not_run(name, tmp_path):
    lines = table(name, tmp_path).splitlines()
    assert "not run" in lines[2]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


@pytest.mark.parametrize("name", GALLERIES)
def test_gallery_shows_existing_pictures(name, tmp_path):
    assert "not run" in gallery(name, tmp_path)
    first = next(iter(GALLERIES[name]))
    (tmp_path / first).touch()
    assert gallery(name, tmp_path).count("\n") == 1
    assert f"(../pictures/{first})" in gallery(name, tmp_path)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_configuration_fits_its_images(path):
    config = load_config(path)
    UNet(config.network, config.data.size, config.data.channels, config.data.channels, None)


@pytest.mark.parametrize("headline", HEADLINES.values(), ids=HEADLINES)
def test_training_command_is_valid(headline, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, verb, *words = shlex.split(headline.training)
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    overrides = {name.lstrip("-"): value for name, value in flags.items() if "." in name}
    config = load_config(words[0], overrides | {"data.source": flags.get("--data", headline.data)})
    assert (program, verb) == ("ddpm", "train")
    assert config.data.source == headline.data
    assert flags["--out"] in [f"runs/{name}" for name in HEADLINES]


def test_emoji_network_can_start_from_the_flowers():
    flowers, emoji = load_config("folder32"), load_config(ROOT / "experiments" / "quality" / "emoji32.yaml")
    assert flowers.network == emoji.network
    assert flowers.diffusion == emoji.diffusion


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_default_sampler_is_the_best_at_20_evaluations(name):
    """It is also better than 1,000 ancestral steps."""
    found = json.loads((RESULTS / f"few_steps_{name}.json").read_text())
    at = found["budgets"].index(20)
    best = min(found["rows"], key=lambda row: row["values"][at])
    assert (best["sampler"], best["spacing"]) == (DEFAULT_SAMPLER, SAMPLERS[DEFAULT_SAMPLER].spacing)
    assert best["values"][at] < found["ancestral"]["value"]


@pytest.mark.parametrize("line", documented())
def test_documented_command_is_understood(line, monkeypatch):
    class Understood(Exception):
        pass

    def parse_only(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise Understood

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    _, _, module, *words = shlex.split(line)
    assert importlib.util.find_spec(module)
    script = pytest.importorskip(module, reason="needs an extra", exc_type=ImportError)
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises(Understood):
        script.main()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["mnist", "--features", "/models/inception.pt"], "mnist --features inception.pt"),
        (["mnist", "--features=/models/inception.pt"], "mnist --features=inception.pt"),
        (["a b", "runs/mnist"], "'a b' runs/mnist"),
    ],
)
def test_command_has_no_absolute_path(words, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("experiments.paper", None))
    assert command() == f"python -m experiments.paper {shown}"


def test_the_limit_is_the_fastest_format_that_was_measured():
    limits = {"convolution_fp32": 260.0, "matrix_bf16": 900.0, "convolution_bf16": 50.0, "copy_gb": 1000.0}
    assert table_rows.fastest(limits) == ("fp32", 260.0)
