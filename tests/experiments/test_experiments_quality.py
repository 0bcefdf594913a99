"""Experiments on quality run at toy size, on a synthetic MNIST of bars, 8×8 pixels."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.model import load
from ddpm.training import load_config, train
from experiments.hold_out import hold_out
from experiments.lib import cores
from experiments.paper import paper_figures
from experiments.quality import study
from experiments.quality.headline import HEADLINES, Headline, evaluate_row
from experiments.tables import table

SIDE = 8
TINY = {"network.channels": 8, "network.groups": 4, "network.channel_mult": [1, 1], "network.attention": []}
TINY |= {"data.image_size": SIDE, "training.batch_size": 4, "training.steps": 2, "training.preview_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """$DDPM_DATA with a data set `mnist` of ten classes, and an empty cache."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_DATA", str(folder))
        patch.setenv("DDPM_CACHE", str(folder / "cache"))
        noise = torch.Generator().manual_seed(0)
        for label in range(10):
            (folder / "all" / str(label)).mkdir(parents=True)
            for index in range(20):
                pixels = torch.randint(0, 60, (SIDE, SIDE), generator=noise, dtype=torch.uint8)
                pixels[:, label % SIDE] = 255 - 10 * label
                Image.fromarray(pixels.numpy()).save(folder / "all" / str(label) / f"{index:02d}.png")
        hold_out(folder / "all", folder / "mnist")
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run of two training steps, with classes."""
    folder = tmp_path_factory.mktemp("runs") / "mnist"
    train(load_config("mnist", TINY | {"diffusion.timesteps": 20}), folder)
    return folder


def test_hold_out_keeps_every_image_once_and_every_class_in_both_parts(data):
    parts = [
        sorted(path.relative_to(data / "mnist" / part) for path in (data / "mnist" / part).rglob("*.png"))
        for part in ("train", "test")
    ]
    assert [len(part) for part in parts] == [180, 20]
    assert not set(parts[0]) & set(parts[1])
    assert {path.parent.name for path in parts[1]} == {str(label) for label in range(10)}


def test_training_fills_the_model_card(run):
    card = (run / "model" / "README.md").read_text()
    for section in ("Use", "Data", "Training", "Configuration", "Samples", "Limits"):
        assert f"## {section}\n" in card
    assert "| images | 180 |" in card
    assert "| seconds |" in card
    assert (run / "model" / "samples.png").read_bytes() == (run / "samples" / "000002.png").read_bytes()


def test_evaluate_row_writes_metrics_pictures_and_card(run, tmp_path):
    headline = Headline(HEADLINES["mnist"].title, HEADLINES["mnist"].training, "mnist", 70, {"guidance": 1.5})
    result = evaluate_row("mnist", headline, run, features="builtin", steps=2, results=tmp_path, pictures=tmp_path)
    assert json.loads((tmp_path / "mnist.json").read_text()) == result
    assert result["standard"]["settings"]["n"] == 70
    assert result["standard"]["settings"]["guidance"] == 1.5
    assert {"cas", "copies_pixels", "frechet_distance", "kid"} <= set(result["builtin"]["metrics"])
    assert str(tmp_path) not in json.dumps(result)
    shown = table("mnist", tmp_path)
    assert f"{result['builtin']['metrics']['frechet_distance']['value']:.3f}" in shown
    assert "not run" not in shown.splitlines()[2]
    card = (run / "model" / "README.md").read_text()
    assert "## Metrics" in card
    assert "## Samples" in card
    assert (tmp_path / "mnist.png").exists()
    assert (tmp_path / "mnist-closest-pairs.png").exists()
    assert load(run).provenance["metrics"]["classification accuracy score"] >= 0


def test_paper_figures_writes_all_figures(run, tmp_path):
    result = paper_figures("toy", load(run), "mnist:test", steps=4, rows=2, results=tmp_path, pictures=tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {f"toy_{name}" for name in result["seconds"]}
    likelihood = json.loads((tmp_path / "paper_toy.json").read_text())["likelihood"]
    assert likelihood["rate_bits"] + likelihood["distortion_bits"] == pytest.approx(likelihood["bits_per_dim"])
    assert likelihood["rate_distortion"][-1][1] == 0


@pytest.fixture
def budget():
    overrides = (*TINY.items(), ("training.preview_every", 0))
    return study.Budget(seeds={"mnist": 1}, num=70, steps=2, overrides=overrides)


def test_study_keeps_and_resumes_cells(budget, tmp_path):
    runs, folders = tmp_path / "runs", {"results": tmp_path, "pictures": tmp_path}
    path = study.study(
        runs,
        budget,
        jobs=cores(),
        **folders,
        # one thread per process, as in the tests: more threads round differently
    )
    first = json.loads(path.read_text())
    assert len(first["cells"]) == len(first["rows"]) == 7
    assert (tmp_path / "study_mnist.png").exists()
    assert table("study_mnist", tmp_path).count("\n") == 9

    lost = study.all_cells(budget)[0]
    (runs / lost.name / "cell.json").unlink()  # as if killed between training and judging
    weights = (runs / lost.name / "model" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert study.run_cell(lost, runs, budget) in first["cells"]
    assert (runs / lost.name / "model" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == weights

    killed = study.all_cells(budget)[1]
    for path in (runs / killed.name).iterdir():  # as if killed before its first checkpoint
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    row = study.run_cell(killed, runs, budget)
    assert row["weights"] in [row["weights"] for row in first["cells"]]


def test_run_cell_refuses_a_run_of_another_configuration(budget, tmp_path):
    cell = study.all_cells(budget)[0]
    row = study.run_cell(cell, tmp_path, budget)
    other = dataclasses.replace(budget, overrides=(*budget.overrides, ("training.steps", 3)))
    with pytest.raises(UserError, match="another --runs"):
        study.run_cell(cell, tmp_path, other)
    assert study.run_cell(cell, tmp_path, budget) == row


def test_one_step_baseline_sees_only_noise(budget, tmp_path):
    cell = next(cell for cell in study.all_cells(budget) if cell.schedule is None)
    study.run_cell(cell, tmp_path, budget)
    model = load(tmp_path / cell.name)
    x_0, noise = torch.ones(1, 1, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)
    for t in range(model.diffusion.schedule.timesteps):
        assert model.diffusion.q_sample(x_0, t, noise).abs().max() == 0


def test_summarise_gives_mean_and_deviation_over_seeds():
    budget = study.Budget(seeds={"mnist": 3})
    rows = [
        {"data": "mnist", "schedule": "linear", "prediction": "v", "seed": seed}
        | {key: float(value) for key in study.SHOWN}
        for seed, value in enumerate((1, 2, 6))
    ]
    (row,) = study.summarise(study.in_order(rows[::-1], budget))
    assert row["seeds"] == 3
    assert row["kid"]["mean"] == pytest.approx(3)
    assert row["kid"]["std"] == pytest.approx(7**0.5)
