"""Ablations and the comparison of samplers run at toy size, on images of noise."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ddpm.model import load
from ddpm.training import dry_run, load_config, train
from experiments.quality import ablations, cells, samplers
from experiments.tables import table

SIDE, NUM = 8, 70
TINY = {
    "data.image_size": SIDE,
    "data.labels": False,
    "network.channel_mult": [1, 1],
    "network.attention": [],
    "training.batch_size": 4,
    "training.preview_every": 0,
    "training.loggers": [],
}
NARROW = {"network.channels": 8, "network.groups": 4}


@pytest.fixture(scope="module", autouse=True)
def source(tmp_path_factory):
    """Images to train on and to compare with, and an empty cache."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (NUM, SIDE, SIDE, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", str(folder / "cache"))
        yield str(folder / "images.npz")


@pytest.mark.parametrize("name", ["muon", "short"])
def test_ablation_changes_only_what_it_names(name):
    budget = ablations.BUDGETS[name]
    base = ablations.configuration(ablations.BASE, 0, replace(budget, images=40_000), {})
    assert base.training.steps * base.training.batch_size == 40_000
    for variant in budget.variants:
        changes = (ablations.VARIANTS | ablations.MUON_VARIANTS)[variant]
        config = ablations.configuration(variant, 0, budget, {})
        fitted = {"steps": base.training.steps, "warmup": base.training.warmup}
        config.training = config.training.model_copy(update=fitted)
        found = {
            f"{section}.{name}"
            for section, fields in config.model_dump().items()
            for name, value in fields.items()
            if value != base.model_dump()[section][name]
        }
        assert found == set(changes), variant


def test_ablations_keep_finished_cells(source, tmp_path, monkeypatch):
    names = (ablations.BASE, "batches of 128", "width 24, equal time")
    monkeypatch.setattr(cells, "side_by_side", lambda work, tasks, jobs: (work(*task) for task in tasks))
    monkeypatch.setattr(dry_run, "LEAST_SECONDS", 0.0)
    overrides = {name: value for name, value in (TINY | {"data.source": source}).items() if "batch" not in name}
    budget = ablations.Budget(variants=names, images=128, num=NUM, steps=2, overrides=tuple(overrides.items()))
    options = {"jobs": 1, "results": tmp_path, "pictures": tmp_path}
    path = ablations.ablations("ablations_short", tmp_path / "runs", budget, **options)
    first = json.loads(path.read_text())
    assert [row["variant"] for row in first["rows"]] == list(names)
    assert [row["images"] for row in first["rows"]][:2] == [128, 256]  # at least two steps
    assert first["rows"][0]["frechet_distance"]["mean"] > 0
    assert (tmp_path / "ablations_short.png").exists()
    ablations.ablations("ablations_short", tmp_path / "runs", budget, **options)
    assert json.loads(path.read_text()) == first
    ablations.ablations("ablations_short", tmp_path / "runs", replace(budget, seeds=2), **options)
    more = json.loads(path.read_text())
    assert more["cells"][: len(names)] == first["cells"]
    assert [row["seeds"] for row in more["rows"]] == [2] * len(names)
    assert more["rows"][0]["frechet_distance"]["std"] > 0
    assert table("ablations_short", tmp_path).count("\n") == 2 + len(names)


def test_configuration_gives_a_slower_network_fewer_steps():
    paces = {ablations.BASE: 0.1, "width 48, equal time": 0.2}
    wide = ablations.configuration("width 48, equal time", 0, ablations.Budget(), paces)
    base = ablations.configuration(ablations.BASE, 0, ablations.Budget(), paces)
    assert wide.training.steps * 0.2 == pytest.approx(base.training.steps * 0.1, rel=0.01)
    assert wide.training.warmup < base.training.warmup


def test_few_steps_evaluates_every_sampler(source, tmp_path):
    run = tmp_path / "run"
    training = {"training.steps": 2, "training.warmup": 1, "data.source": source, "diffusion.timesteps": 20}
    train(load_config("mnist", TINY | NARROW | training), run)
    result = samplers.few_steps(
        "digits",
        load(run),
        source,
        features="builtin",
        num=NUM,
        budgets=(2, 4),
        many=20,
        results=tmp_path,
        pictures=tmp_path,
    )
    assert json.loads((tmp_path / "few_steps_digits.json").read_text()) == result
    assert (tmp_path / "few_steps_digits.png").exists()
    evaluations = {row["sampler"]: row["evaluations"] for row in result["rows"]}
    assert evaluations == {name: [1, 3] if name == "heun" else [2, 4] for name in samplers.SAMPLERS}
    assert table("few_steps_digits", tmp_path).count("\n") == 2 + len(result["rows"])
