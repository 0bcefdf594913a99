"""Quality against network evaluations, and the judge that runs beside training."""

import numpy as np
import pytest
from evaluation_cases import save

from ddpm.data import DataConfig
from ddpm.errors import UserError
from ddpm.evaluation.monitor import training_evaluator
from ddpm.evaluation.sweep import sweep


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
        (["dpm++"], [2, 9], {}, "9 steps asked for"),
        (["dpm++", "nope"], [2], {}, "no sampler named 'nope'"),
        (["ddim", "heun"], [2], {"eta": 0.5}, "heun takes no option 'eta'"),
    ],
)
def test_a_sweep_says_what_is_wrong_before_it_draws(model, tmp_path, cache, samplers, evaluations, more, match):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    common = {"metric": "kid", "features": "builtin", "num": 12, "progress": False}
    with pytest.raises(UserError, match=match):
        sweep(model, real, samplers=samplers, evaluations=evaluations, **common, **more)
    assert not list(cache.glob("evaluation/images-*/*.npy"))


def test_a_sweep_asks_for_no_more_steps_than_the_process_has(model, tmp_path):
    """The eight of this one, unless it is told."""
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    points = sweep(model, real, samplers=["ddim"], metric="kid", features="builtin", num=12, progress=False)
    assert [point.evaluations for point in points] == [5]


def test_the_training_evaluator_repeats_itself(model, tmp_path):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    evaluator = training_evaluator(DataConfig(source=real, image_size=8), num=12, steps=2)
    first, second = evaluator(model), evaluator(model)
    assert first == second
    assert next(iter(first)) == "kid_builtin"
    assert set(first) == {"kid_builtin", "distance_builtin"}


@pytest.mark.parametrize("channels", [2, 4])
def test_what_the_training_evaluator_cannot_judge_is_refused_before_training(channels):
    with pytest.raises(UserError, match="evaluate_every 0"):
        training_evaluator(DataConfig(source="digits", channels=channels))


def test_the_training_evaluator_takes_no_more_steps_than_the_process_has(model, tmp_path):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    given = DataConfig(source=real, image_size=8)
    assert training_evaluator(given, num=12)(model) == training_evaluator(given, num=12, steps=8)(model)
