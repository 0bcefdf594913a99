"""Sets of unequal size count all their images, and a sweep passes its options on to each evaluation."""

import inspect

import numpy as np
import pytest

from ddpm.evaluation import sweep as sweep_module
from ddpm.evaluation.distances import (
    channel_drift,
    frechet_distance,
    kernel_distance,
    level_fractions,
    manifold_metrics,
    misplaced_levels,
    moments_of,
)
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.features import load_features

RANDOM = np.random.default_rng(0)
FEW, MANY = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(40, 4))


def unbiased_discrepancy(x, y):
    """MMD² over all pairs of different images, for any two sizes (Gretton et al. 2012, eq. 3)."""
    k = [(a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(own.sum() - np.trace(own)) / (len(own) * (len(own) - 1)) for own in k[:2]]
    return sum(within) - 2 * k[2].mean()


@pytest.mark.parametrize("swap", [False, True])
def test_kernel_distance_draws_from_all_of_the_longer_side(swap):
    far = np.concatenate([MANY[:7], MANY[7:] + 2])  # only the images beyond the seventh are far away
    sides = (far, FEW) if swap else (FEW, far)
    found = kernel_distance(*sides, subsets=2000, subset_size=4)
    assert found.std is not None
    assert abs(found.mean - unbiased_discrepancy(*sides)) < 4 * found.std / np.sqrt(2000)


def pixels(features):
    """Features as images of one pixel, uint8 (n, C, 1, 1)."""
    return np.uint8(20 * features + 99)[..., None, None]


SCORES = {
    "kernel": lambda a, b: kernel_distance(a, b, subsets=20, subset_size=5).mean,
    "frechet": lambda a, b: frechet_distance(moments_of([a]), moments_of([b])),
    "manifold": lambda a, b: manifold_metrics(a, b, k_precision=1, k_density=2),
    "drift": lambda a, b: channel_drift(a, b)[0],
    "levels": lambda a, b: misplaced_levels(
        *(level_fractions([np.uint8(20 * x + 99)[..., None, None]]) for x in (a, b))
    ),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_images_beyond_the_shorter_side_change_the_score(name, swap):
    changed = MANY.copy()
    changed[len(FEW) :] += 1
    sides = [(many, FEW) if swap else (FEW, many) for many in (MANY, changed)]
    before, after = (SCORES[name](*both) for both in sides)
    assert before != after


def test_every_argument_of_an_evaluation_passes_through_a_sweep(model, tmp_path, monkeypatch):
    given = {"num": 5, "test": "held.npz", "fit": "pad", "force": True, "progress": False}
    own = {"metrics", "features", "pictures"}  # which the sweep sets itself
    keywords = {p.name for p in inspect.signature(evaluate).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert keywords == own | set(given)  # give a new argument a value above
    calls = []
    monkeypatch.setattr(sweep_module, "evaluate", lambda *words, **more: calls.append((words, more)))
    sweep_module.sweep(
        model, "real.npz", samplers=["ddim"], evaluations=[2], metric="kid", features="builtin", seed=9,
        pictures=tmp_path / "p", **given,
    )  # fmt: skip
    (((candidate, data, options), more),) = calls
    assert candidate is model
    assert data == "real.npz"
    assert (options.sampler, options.steps, options.seed) == ("ddim", 2, 9)
    assert {name: more[name] for name in given} == given
    assert more["metrics"] == ["kid"]
    assert more["pictures"] == tmp_path / "p-ddim-2"
    assert more["features"].name == load_features("builtin").name
