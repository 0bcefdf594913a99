"""Evaluation end to end on tiny sets: the report, refusals, the command line, several processes."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_cases import save
from PIL import Image

from ddpm.cli import run
from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.evaluation.distances import moments_of
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.features import load_features
from ddpm.evaluation.image_sets import DatasetImages
from ddpm.evaluation.metrics import METRICS
from ddpm.evaluation.opening import open_candidate, open_images, open_test
from ddpm.model import Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig


def test_evaluate_reports_everything_that_numbers_depend_on(model, network, tmp_path):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8), np.arange(80) % 3)
    report = evaluate(
        model,
        real,
        features=network,
        num=70,
        test=real,
        metrics=["fid", "kid", "class_kid", "nll"],
        steps=3,
        progress=False,
        batch_size=16,
        pictures=tmp_path / "x",
    )
    shown = report.table()
    for word in ("dpm++", model.weights_hash, "70", "80", network.fingerprint[:12], "Fréchet distance (builtin"):
        assert word in shown
    assert report.settings["steps"] == 3
    assert report.settings["seed"] == 0
    report.save(tmp_path / "r.json")
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["metrics"]["kid"]["value"] == report.value("kid")
    assert (tmp_path / "x-likelihood.png").exists()


@pytest.mark.parametrize(
    ("held", "labels", "said"),
    [
        ([20, 20, 20], None, ""),
        ([23, 20, 17], None, ""),
        ([40, 10, 10], None, "3 of 3 classes are more or less frequent in the reference"),
        ([30, 20, 10], None, "2 of 3 classes are more or less frequent in the reference"),
        ([30, 20, 10], [0, 0, 0, 1, 1, 2], ""),
        ([20, 20, 20], [0], "3 of 3 classes are more or less frequent in the reference"),
    ],
)
def test_evaluate_notes_other_class_proportions(model, network, tmp_path, held, labels, said):
    """In the numbers that compare all classes at once, and in no others."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    real = save(tmp_path / "real.npz", pixels, np.repeat(np.arange(3), held))
    options = {} if labels is None else {"labels": labels}
    metrics = ["fid", "kid", "drift", "levels", "prdc"]
    report = evaluate(
        model, real, features=network, num=60, metrics=metrics, steps=1, force=True, progress=False, **options
    )
    notes = {one.key: one.note for one in report.metrics}
    for key in ("frechet_distance", "kid", "drift_red", "drift_blue", "levels"):
        assert said in notes[key]
        assert ("--labels changes the proportions" in notes[key]) == bool(said)
    assert "--labels" not in notes["precision"]
    assert notes["levels"].startswith("fraction of the pixels")


def test_evaluate_gives_the_same_distance_with_precomputed_moments(digits, network, tmp_path):
    judged, real = save(tmp_path / "a.npz", digits[0][:300]), save(tmp_path / "b.npz", digits[0][300:700])
    moments_of([network(open_images(real)[:])[0]]).save(tmp_path / "moments.npz")
    ready = evaluate(judged, str(tmp_path / "moments.npz"), features=network, progress=False)
    full = evaluate(judged, real, metrics=["fid"], features=network, progress=False)
    assert [one.key for one in ready.metrics] == ["frechet_distance"]
    assert ready.value("frechet_distance") == pytest.approx(full.value("frechet_distance"), rel=1e-4)
    assert ready.settings["reference_n"] == 400


def test_evaluate_refuses_what_is_not_possible(digits, network, model, tmp_path):
    grey = save(tmp_path / "grey.npz", digits[0][:50])
    large = save(tmp_path / "large.npz", np.zeros((100, 32, 32, 1), np.uint8))
    colour = save(tmp_path / "colour.npz", np.zeros((100, 28, 28, 3), np.uint8))
    moments_of([np.random.default_rng(0).normal(size=(99, 7))]).save(tmp_path / "moments.npz")
    moments, empty = str(tmp_path / "moments.npz"), tmp_path / "empty"
    empty.mkdir()

    def refused(match, judged, data, **options):
        with pytest.raises(UserError, match=match):
            evaluate(judged, data, features=network, progress=False, **options)

    refused("28×28 grey images and .* 32×32 grey", grey, large)
    refused("28×28 grey images and .* 28×28 colour", grey, colour)
    refused("as many images as feature dimensions, 64, and the reference has 50", grey, grey, metrics=["fid"])
    refused("features of the reference.s 7 dimensions", colour, moments, metrics=["fid"])
    refused("kid needs the reference's images", colour, moments, metrics=["kid"])
    refused("has none", grey, grey, metrics=["class_kid"])
    refused("held-out images: give --test", grey, grey, metrics=["memorisation"])
    refused("nll needs a model", grey, grey, metrics=["nll"], test=grey)
    refused("is needs class logits", grey, grey, metrics=["is"])
    refused("no metric 'fidd'; did you mean fid", grey, grey, metrics=["fidd"])
    refused("no image", str(empty), grey)
    refused("precomputed statistics: give it to --data", moments, grey)
    refused("are for a model", grey, grey, num=5)
    refused("holds grey images, and the images to evaluate are colour", model, grey, num=70)
    forced = evaluate(grey, grey, metrics=["fid"], features=network, force=True, progress=False)
    assert "BIASED" in forced.table()


def test_open_test_converts_the_other_split_of_the_training_data(model, tmp_path, digits):
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        Image.fromarray(digits[0][0][..., 0]).save(tmp_path / "set" / split / "0.png")
    source = str(tmp_path / "set")
    judged = Model(model.network, model.diffusion, image_shape=(3, 8, 8))
    judged.provenance = {"config": {"data": {"source": source}}}
    assert open_test(None, source, judged).shape == (3, 8, 8)
    with pytest.raises(UserError, match="holds grey images"):
        open_test(f"{tmp_path}/set/test", source, judged)


def test_open_test_keeps_the_row_filter_of_a_hub_set(model, tmp_path, monkeypatch):
    """Never training images; grey images are converted for a colour model that was trained on them."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    for split, count in (("train", 9), ("test", 6)):
        rows = {"image": [Image.new("L", (8, 8), n) for n in range(count)], "style": [*"abc"] * (count // 3)}
        features = datasets.Features({"image": datasets.Image(), "style": datasets.Value("string")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    source = f"hf:{tmp_path}/set"
    judged = Model(model.network, model.diffusion, image_shape=(3, 8, 8))
    judged.provenance = {"config": {"data": {"source": f"{source}?style=a,b"}}}
    assert len(open_test(None, f"{source}?style=a,b", judged)) == 4
    assert len(open_test(None, source, judged)) == 6
    for split in ("train", "test"):
        assert open_test(None, f"{source}:{split}?style=a,b", judged) is None


def test_open_candidate_prefers_a_bundled_model_to_a_folder(tmp_path):
    """As in `ddpm.load`; the folder is ./digits."""
    (tmp_path / "digits").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "digits" / "0.png")
    assert isinstance(open_candidate("digits"), Model)
    assert isinstance(open_candidate("./digits"), DatasetImages)


def test_cli_evaluate_writes_results_to_the_model_card(model, tmp_path, capsys):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    model.save(tmp_path / "model")
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--features", "builtin", "--metrics", "kid"]
    assert run([*words, "--num", "12", "--steps", "2", "--out", str(tmp_path / "e.json")]) == 0
    assert "README.md" in capsys.readouterr().out
    rows = [line for line in (tmp_path / "model" / "README.md").read_text().splitlines() if line.startswith("|")]
    (line,) = (line for line in rows if "12 images" in line)
    value = json.loads((tmp_path / "e.json").read_text())["metrics"]["kid"]["value"]
    assert "2 steps of dpm++" in line
    assert f"| {value:.6g} |" in line


def test_cli_evaluate_succeeds_if_the_card_cannot_be_written(model, tmp_path, capsys):
    """A folder blocks the name of the temporary file, as missing permissions would."""
    real = save(tmp_path / "real.npz", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    model.save(tmp_path / "model")
    (tmp_path / "model" / f".ddpm.json.{os.getpid()}").mkdir()
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--features", "builtin", "--metrics", "levels"]
    assert run([*words, "--num", "4", "--steps", "1", "--out", str(tmp_path / "e.json")]) == 0
    assert "README.md, could not be updated: Is a directory" in capsys.readouterr().out
    assert (tmp_path / "e.json").exists()


def test_cli_evaluate_keeps_one_card_line_per_set_of_options(model, tmp_path, monkeypatch):
    """A repeated call adds no line."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    real = save(tmp_path / "real.npz", pixels)
    model.save(tmp_path / "model")
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--test", real, "--features", "builtin"]
    words += ["--num", "12", "--steps", "2", "--sampler", "ddim", "--metrics", "prdc,memorisation", "--overwrite"]
    others = ["--guidance 2", "--labels 0,1", "--eta 1", "--spacing quadratic", "--clip none", "--seed 3"]
    for other in ["", "--labels all", *others, "--seed 0"]:
        assert run([*words, *other.split()]) == 0
    builtin = load_features("builtin")
    other = replace(builtin, name="another", fingerprint="another network")
    monkeypatch.setattr("ddpm.evaluation.evaluate.load_features", lambda name: other)
    assert run(words) == 0
    lines = (tmp_path / "model" / "README.md").read_text().splitlines()
    of_recall = sorted(line.split("|")[1].strip() for line in lines if line.startswith("| recall"))
    how = "12 images, 2 steps of ddim"
    told = ["", "clip None, ", "eta 1.0, ", "guidance 2.0, ", "labels [0, 1], ", "seed 3, ", "spacing quadratic, "]
    expected = [f"recall (builtin features): {how}, {option}against {real}" for option in told]
    assert of_recall == sorted([*expected, f"recall (another features): {how}, against {real}"])
    for name in ("builtin", "another"):
        text = f"copies by {name} features: {how}, against"
        assert sum(text in line for line in lines if line.startswith("|")) == 1


def test_cli_evaluate_prints_and_saves_the_report(digits, tmp_path, capsys):
    judged, real = save(tmp_path / "a.npz", digits[0][:90]), save(tmp_path / "b.npz", digits[0][100:200])
    words = ["evaluate", judged, "--data", real, "--features", "builtin"]
    assert run([*words, "--metrics", "fid,kid"]) == 0
    assert "Fréchet distance (builtin features)" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "evaluation.json").read_text())["metrics"]) == {"frechet_distance", "kid"}
    for more in (
        [],
        ["--metrics", "nonsense", "--overwrite"],
        ["--steps", "5", "--overwrite"],
        ["--sweep", "--overwrite"],
    ):
        assert run([*words, *more]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("ddpm: error: ")
        assert "\n" not in error


def test_cli_evaluate_gives_the_same_numbers_with_two_processes(model, tmp_path):
    """To the last digit, with the launcher of the documentation."""
    model.save(tmp_path / "model")
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (600, 8, 8, 3), dtype=np.uint8), np.arange(600) % 3
    real, test = save(tmp_path / "real.npz", pixels, labels), save(tmp_path / "test.npz", pixels[:150], labels[:150])
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--test", test, "--features", "builtin"]
    words += ["--metrics", "fid,kid,nll,memorisation", "--num", "600", "--steps", "1"]
    assert run([*words, "--out", "one.json"]) == 0
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "ddpm"]
    alone = {"DDPM_CACHE": str(tmp_path / "another"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launched = subprocess.run(
        [*launcher, *words, "--out", "two.json"], env={**os.environ, **alone}, capture_output=True
    )
    assert launched.returncode == 0, launched.stderr.decode()[-2000:]
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    assert one["metrics"] == two["metrics"]
    assert one["settings"] == two["settings"]
    assert sorted(path.name for path in (tmp_path / "another" / "evaluation").glob("likelihood-*/*.npy")) == [
        "00000000-00001024.npy",
        "00001024-00001200.npy",
    ]


def test_cli_evaluate_sweep_saves_a_plot(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--features", "builtin", "--num", "8", "--sweep"]
    words += ["--metrics", "kid", "--sampler", "ddim,dpm++", "--steps", "2,3", "--out", str(tmp_path / "sweep.json")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(words) == 0
    assert len(json.loads((tmp_path / "sweep.json").read_text())) == 4
    assert Image.open(tmp_path / "sweep.png").size[0] > 300


def test_cli_evaluate_sweep_names_its_files_after_out(model, tmp_path):
    model.save(tmp_path / "model")
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    (tmp_path / "evaluation-closest-pairs.png").write_text("mine")
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--test", real, "--features", "builtin", "--num", "8"]
    words += ["--sweep", "--metrics", "memorisation", "--sampler", "ddim", "--steps", "1,2", "--out", "new/sweep.json"]
    assert run(words) == 0
    pictures = [f"new/sweep-ddim-{budget}-closest-pairs.png" for budget in (1, 2)]
    assert [point["pictures"] for point in json.loads(Path("new/sweep.json").read_text())] == [[p] for p in pictures]
    assert sorted(map(str, Path("new").iterdir())) == [*pictures, "new/sweep.json", "new/sweep.png"]
    assert Path("evaluation-closest-pairs.png").read_text() == "mine"


def test_docs_name_every_metric():
    text = (Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md").read_text()
    assert not [name for name in METRICS if f"`{name}`" not in text]


def test_evaluate_leaves_out_default_metrics_that_the_data_do_not_support(digits, network, tmp_path):
    few, real = save(tmp_path / "few.npz", digits[0][:50]), save(tmp_path / "real.npz", digits[0][100:200])
    report = evaluate(few, real, features=network, progress=False)
    assert list(report.left_out) == ["fid", "is"]
    assert "as many images as feature dimensions, 64, and" in report.left_out["fid"]
    assert {"kid", "precision", "drift_grey", "levels"} <= {one.key for one in report.metrics}
    assert "not computed: fid needs as many images as feature dimensions" in report.table()
    assert report.as_dict()["left_out"] == report.left_out
    with pytest.raises(UserError, match="fid needs as many images"):
        evaluate(few, real, metrics=["kid", "fid"], features=network, progress=False)
    assert "fid" not in evaluate(few, real, features=network, force=True, progress=False).left_out


def test_evaluate_refuses_if_no_default_metric_is_possible(digits, network, tmp_path):
    few = save(tmp_path / "few.npz", digits[0][:50])
    moments_of([np.random.default_rng(0).normal(size=(99, 7))]).save(tmp_path / "moments.npz")
    with pytest.raises(UserError, match="fid needs features of the reference's 7 dimensions"):
        evaluate(few, str(tmp_path / "moments.npz"), features=network, progress=False)


def test_metrics_refuse_numbers_that_are_not_finite(digits, network, tmp_path, monkeypatch):
    real = save(tmp_path / "real.npz", digits[0][:100])
    monkeypatch.setattr("ddpm.evaluation.metrics.frechet_distance", lambda a, b: float("nan"))
    with pytest.raises(UserError, match=r"Fréchet distance \(builtin features\) is not finite"):
        evaluate(real, real, metrics=["fid"], features=network, progress=False)


def test_cli_evaluate_keeps_numbers_that_are_not_finite_out_of_the_card(tmp_path, digits, capsys):
    config = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)
    unet = UNet(config, (28, 28), in_channels=1, out_channels=1)
    with torch.no_grad():
        next(unet.parameters()).fill_(torch.nan)
    Model(unet, DiffusionConfig(timesteps=8).build(), image_shape=(1, 28, 28)).save(tmp_path / "model")
    before = (tmp_path / "model" / "README.md").read_text()
    words = ["evaluate", str(tmp_path / "model"), "--data", save(tmp_path / "real.npz", digits[0][:70])]
    assert run([*words, "--features", "builtin", "--num", "8", "--metrics", "kid"]) == 2
    assert "numbers that are not finite" in capsys.readouterr().err
    assert (tmp_path / "model" / "README.md").read_text() == before
    assert not (tmp_path / "evaluation.json").exists()


def test_report_table_shows_only_sampling_options_that_differ_from_their_defaults(model, network, tmp_path):
    real = save(tmp_path / "real.npz", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    options = {"features": network, "num": 8, "metrics": ["kid"], "progress": False}
    names = {line.split()[0] for line in evaluate(model, real, steps=2, guidance=1.5, **options).table().splitlines()
             if line}  # fmt: skip
    assert {"sampler", "steps", "guidance", "weights"} <= names
    assert not {"seed", "labels", "clip", "spacing", "precision"} & names
