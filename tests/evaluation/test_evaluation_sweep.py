"""Quality against network evaluations, and the evaluation during training."""

import inspect
import json
import tarfile

import numpy as np
import pytest
import torch
from evaluation_cases import save
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_kid import kid_features_to_metric

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.data import DataConfig, open_dataset, stored
from ddpm.data.datasets import epoch_order
from ddpm.evaluation import training_eval
from ddpm.evaluation.distances import kernel_distance
from ddpm.evaluation.evaluate import Report
from ddpm.evaluation.features import load_features
from ddpm.evaluation.metrics import MetricValue
from ddpm.evaluation.sweep import Point, save_points, sweep
from ddpm.evaluation.training_eval import real_images, training_evaluator
from ddpm.interop.diffusers import Student
from ddpm.model import Model


def test_sweep_compares_samplers_at_equal_evaluations(model, network, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    points = sweep(
        model,
        real,
        samplers=["ddim", "heun"],
        evaluations=[3, 5],
        metric="kid",
        features="builtin",
        num=12,
        progress=False,
    )
    assert [(p.sampler, p.steps, p.evaluations) for p in points] == [
        ("ddim", 3, 3),
        ("ddim", 5, 5),
        ("heun", 2, 3),
        ("heun", 3, 5),
    ]
    assert all(np.isfinite(p.report.value("kid")) for p in points)


@pytest.mark.parametrize(
    ("samplers", "evaluations", "more", "match"),
    [
        (["dpm++"], [2, 9], {}, "cannot take 9 steps"),
        (["dpm++", "nope"], [2], {}, "no sampler named 'nope'"),
        (["ddim", "heun"], [2], {"eta": 0.5}, "heun takes no option 'eta'"),
    ],
)
def test_sweep_checks_all_options_before_sampling(model, tmp_path, cache, samplers, evaluations, more, match):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    common = {"metric": "kid", "features": "builtin", "num": 12, "progress": False}
    with pytest.raises(UserError, match=match):
        sweep(model, real, samplers=samplers, evaluations=evaluations, **common, **more)
    assert not list(cache.glob("evaluation/images-*/*.npy"))


def test_sweep_default_budgets_do_not_exceed_the_timesteps(model, tmp_path):
    """There are eight."""
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    points = sweep(model, real, samplers=["ddim"], metric="kid", features="builtin", num=12, progress=False)
    assert [point.evaluations for point in points] == [5]


def test_training_evaluator_is_deterministic(model, tmp_path):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    evaluator = training_evaluator(DataConfig(source=real, image_size=8), num=12, steps=2)
    first, second = evaluator(model), evaluator(model)
    assert first == second
    assert next(iter(first)) == "kid_builtin"
    assert set(first) == {"kid_builtin", "frechet_builtin"}


def test_training_evaluator_compares_samples_of_seed_0_with_the_data(model, network, tmp_path):
    """Features of 30 samples of 5 steps against those of 30 of 40 images, by other libraries."""
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    data = DataConfig(source=real, image_size=8)
    found = training_evaluator(data, num=30, steps=5)(model)
    ours = network(to_uint8(model.sample(30, steps=5, seed=0)))[0]
    theirs = network(real_images(data, 30))[0]
    kid = kid_features_to_metric(
        torch.from_numpy(ours).double(), torch.from_numpy(theirs).double(), kid_subsets=1, kid_subset_size=30,
        verbose=False,
    )  # fmt: skip
    assert found["kid_builtin"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)
    mean, covariance = theirs.mean(0), np.cov(theirs, rowvar=False)
    fid = calculate_frechet_distance(ours.mean(0), np.cov(ours, rowvar=False), mean, covariance, eps=1e-9)
    assert found["frechet_builtin"] == pytest.approx(fid, rel=0.02)


def photographs(folder, count):
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png")


def test_real_images_decodes_no_more_images_than_needed(tmp_path, monkeypatch):
    photographs(tmp_path, 40)
    (tmp_path / "007.png").write_bytes(b"broken")
    data = DataConfig(source=str(tmp_path), image_size=8)
    expected = open_dataset(data).draw(0, range(39))[0].flatten(1).unique(dim=0)
    decoded = []
    decode = stored.decode
    monkeypatch.setattr(stored, "decode", lambda *asked, **named: (decoded.append(1), decode(*asked, **named))[1])
    few = real_images(data, 6)
    assert len(few.flatten(1).unique(dim=0)) == 6
    assert len(decoded) <= 7
    assert torch.equal(real_images(data, 500).flatten(1).unique(dim=0), expected)


def test_real_images_repeats_no_image_of_a_short_stream(tmp_path):
    photographs(tmp_path, 5)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in sorted(tmp_path.glob("*.png")):
            tar.add(path, path.name)
    data = DataConfig(source=str(tmp_path / "set.tar"), image_size=8, streaming=True)
    assert sorted(real_images(data, 12)[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4]


def test_training_evaluator_asks_for_what_its_text_says(model, tmp_path, monkeypatch):
    """500 samples of 20 steps, 20 subsets of 250; the real images are the first of epoch 0 of seed 0."""
    defaults = {name: p.default for name, p in inspect.signature(training_evaluator).parameters.items()}
    assert (defaults["num"], defaults["steps"]) == (500, 20)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    data = DataConfig(source=save(tmp_path / "real.npz", pixels), image_size=8)
    first = epoch_order(40, 0, range(6)).tolist()
    assert torch.equal(real_images(data, 6), torch.from_numpy(pixels[first]).permute(0, 3, 1, 2))
    asked = []

    def watched(ours, theirs, **options):
        asked.append(options)
        return kernel_distance(ours, theirs, subsets=1, subset_size=5)

    monkeypatch.setattr(training_eval, "kernel_distance", watched)
    training_evaluator(data, num=6, steps=2)(model)
    assert asked == [{"subsets": 20, "subset_size": 250}]


@pytest.mark.parametrize("channels", [2, 4])
def test_training_evaluator_refuses_unsupported_channels(channels):
    with pytest.raises(UserError, match="evaluate_every 0"):
        training_evaluator(DataConfig(source="digits", channels=channels))


def test_training_evaluator_steps_do_not_exceed_the_timesteps(model, tmp_path):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    given = DataConfig(source=real, image_size=8)
    assert training_evaluator(given, num=12)(model) == training_evaluator(given, num=12, steps=8)(model)


def test_training_evaluator_gives_the_numbers_of_one_process_in_several(model, tmp_path, monkeypatch):
    """Each samples its share, and all compare all of them; a student is sampled in its own steps."""
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    student = Model(model.network, model.diffusion, image_shape=(3, 8, 8), class_names=["a", "b", "c"], null_label=3)
    student.student = Student(steps=2)
    evaluator = training_evaluator(DataConfig(source=real, image_size=8), num=35, steps=3)
    alone, shares = evaluator(student), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(training_eval, "gather", lambda mine: shares.append(list(mine)) or shares[-1])
        evaluator(student)
    monkeypatch.setattr(training_eval, "gather", lambda mine: [part for share in shares for part in share])
    assert [sum(map(len, share)) for share in shares] == [11, 12, 12]
    assert evaluator(student) == pytest.approx(alone, rel=1e-4)
    asked = {"sampler": "ddim", "steps": 2, "seed": 0}
    expected = load_features("builtin", torch.device("cpu"))(to_uint8(student.sample(35, **asked)))[0]
    np.testing.assert_allclose(np.concatenate([part for share in shares for part in share]), expected, atol=1e-4)


def test_points_are_saved_with_their_reports_in_a_folder_that_is_made(tmp_path):
    report = Report({"candidate": "Füchse"}, [MetricValue("kid", "KID × 1000", 0.25)], [])
    points = [Point("ddim", 2, 3, report), Point("heun", 2, 5, report)]
    path = tmp_path / "of" / "mine" / "sweep.json"
    for _ in range(2):
        save_points(points, path)
    text = path.read_text(encoding="utf-8")
    assert "Füchse" in text
    assert "KID × 1000" in text
    assert text.endswith("]\n")
    rows = json.loads(text)
    assert [(row.pop("sampler"), row.pop("steps"), row.pop("evaluations")) for row in rows] == [
        ("ddim", 2, 3),
        ("heun", 2, 5),
    ]
    assert rows == [report.as_dict()] * 2
