"""The metrics' arithmetic against torch-fidelity, pytorch-fid, prdc and torchmetrics on the same features."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.inception import InceptionScore as TorchmetricsScore

from ddpm.common.errors import UserError
from ddpm.evaluation.distances import (
    Moments,
    channel_drift,
    frechet_distance,
    inception_score,
    kernel_distance,
    level_fractions,
    load_moments,
    manifold_metrics,
    misplaced_levels,
    moments_of,
    squared_discrepancy,
)


def features(n: int, d: int = 24, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Skewed, correlated, non-negative features, as pooled activations are."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return np.maximum(scale * random.normal(size=(n, d)) @ mixing + 0.3 + shift, 0)


def moments(x: np.ndarray, block: int = 37) -> Moments:
    return moments_of(x[start : start + block] for start in range(0, len(x), block))


def test_moments_of_blocks_are_numpys_mean_and_covariance():
    x = features(301) + 1000  # a large mean is where sums of squares cancel
    found = moments(x)
    assert found.n == 301
    np.testing.assert_allclose(found.mu, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.sigma, np.cov(x, rowvar=False), atol=1e-11)


@pytest.mark.parametrize(("n_a", "n_b"), [(400, 300), (400, 20)], ids=["full rank", "fewer images than dimensions"])
def test_frechet_distance_is_torch_fidelitys(n_a, n_b):
    a, b = features(n_a), features(n_b, seed=1, shift=0.2)
    ours = frechet_distance(moments(a), moments(b))
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_frechet_distance_is_pytorch_fids():
    a, b = features(500), features(500, seed=1, scale=1.5)
    theirs = calculate_frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(theirs, abs=1e-3)


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 4), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 4), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_frechet_distance_of_axis_aligned_gaussians_is_the_closed_form(mean, variance_a, variance_b):
    a = Moments(np.zeros(3), np.diag(variance_a), 100)
    b = Moments(np.array(mean), np.diag(variance_b), 100)
    expected = np.square(mean).sum() + np.square(np.sqrt(variance_a) - np.sqrt(variance_b)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-9)


def test_moments_are_the_same_after_saving(tmp_path):
    found = moments(features(50))
    found.save(tmp_path / "m.npz")
    again = load_moments(tmp_path / "m.npz")
    assert json.dumps(again.n) == "50"  # a plain number, since it goes into the report
    assert frechet_distance(found, again) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("more", [{}, {"n": 0}])
def test_statistics_of_an_unknown_number_of_images_have_no_number(tmp_path, more):
    np.savez(tmp_path / "m.npz", mu=np.zeros(3), sigma=np.eye(3), **more)
    assert load_moments(tmp_path / "m.npz").n is None


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mu": np.zeros(3)}, "has no sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"\(D, D\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
    ],
)
def test_load_moments_refuses_wrong_files(tmp_path, arrays, complaint):
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(UserError, match=complaint):
        load_moments(tmp_path / "m.npz")


def test_frechet_distance_refuses_features_of_two_networks():
    with pytest.raises(UserError, match="same feature network"):
        frechet_distance(moments(features(50, d=8)), moments(features(50, d=9)))


def test_kernel_distance_is_torch_fidelitys_on_the_same_subsets():
    a, b = features(300), features(250, seed=1, shift=0.1)
    ours = kernel_distance(a, b, subsets=7, subset_size=100)
    theirs = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=7, kid_subset_size=100, verbose=False
    )
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)


def test_kernel_distance_is_unbiased_and_frechet_is_not():
    """Two draws of one distribution: KID averages to zero at any n, the Fréchet distance only as n grows."""
    small = [squared_discrepancy(features(20, seed=s), features(20, seed=1000 + s)) for s in range(300)]
    assert abs(np.mean(small)) < 4 * np.std(small) / np.sqrt(300)
    assert frechet_distance(moments(features(30)), moments(features(30, seed=1))) > 1


def test_kernel_subsets_shrink_to_the_smaller_set():
    found = kernel_distance(features(60), features(50, seed=1), subsets=2)
    assert found.subset_size == 50
    assert found.std > 0


def test_kernel_distance_of_one_subset_has_no_deviation():
    a, b = features(50), features(50, seed=1)
    found = kernel_distance(a, b)
    assert (found.subsets, found.subset_size, found.std) == (1, 50, None)
    assert found.mean == pytest.approx(squared_discrepancy(a.astype(np.float64), b.astype(np.float64)), rel=1e-10)


def test_precision_and_recall_are_torch_fidelitys():
    real, generated = features(220), features(180, seed=1, shift=0.25)
    ours = manifold_metrics(real, generated)
    theirs = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, verbose=False
    )
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)
    assert 0.05 < ours.recall < 0.95
    assert 0.05 < ours.precision < 0.95


def test_manifold_metrics_are_prdcs():
    real, generated = features(230), features(190, seed=1, shift=0.15)
    ours = manifold_metrics(real, generated, k_precision=5, k_density=5)
    theirs = compute_prdc(real, generated, nearest_k=5)
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs)


def test_manifold_metrics_tick_as_often_as_blocks_needed():
    from ddpm.evaluation.distances import blocks_needed

    ticks = []
    manifold_metrics(features(1200, d=4), features(1100, d=4, seed=1), tick=lambda: ticks.append(1))
    assert len(ticks) == blocks_needed(1200, 1100)


@pytest.mark.filterwarnings("ignore")  # torchmetrics warns of being handed features
def test_inception_score_is_torch_fidelitys_and_torchmetrics():
    logits = 3 * np.random.default_rng(0).normal(size=(503, 17))
    mean, std = inception_score(logits)
    theirs = isc_features_to_metric(torch.from_numpy(logits))
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    torchmetrics = TorchmetricsScore(feature=torch.nn.Identity(), splits=1)
    torchmetrics.inception.num_features = 17
    torchmetrics.features = [torch.from_numpy(logits)]
    assert inception_score(logits, splits=1)[0] == pytest.approx(torchmetrics.compute()[0].item(), rel=1e-9)


def test_channel_drift_finds_a_tint_beyond_its_error():
    real = np.random.default_rng(0).normal(128, 30, (400, 3))
    same = np.random.default_rng(1).normal(128, 30, (400, 3))
    drift, errors = channel_drift(same, real)
    assert all(abs(level) < 4 * error for level, error in zip(drift, errors, strict=True))
    assert errors == pytest.approx([30 * np.sqrt(2 / 400)] * 3, rel=0.1)
    tinted, _ = channel_drift(same + np.array([12, 0, 0]), real)
    assert tinted[0] - drift[0] == pytest.approx(12)


def test_misplaced_levels_are_the_changed_pixels():
    real = np.random.default_rng(0).choice([0, 128, 255], (50, 3, 6, 6), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    blocks = np.array_split(real, 7)
    assert misplaced_levels(level_fractions(blocks), level_fractions([real])) == 0
    np.testing.assert_allclose(level_fractions(blocks).sum(1), 1)
    changed = real.copy()
    changed[:, 1][real[:, 1] == 0] = 1  # a ground that is a level too bright, in one of three channels
    expected = (real[:, 1] == 0).mean() / 3
    assert misplaced_levels(level_fractions([changed]), level_fractions(blocks)) == pytest.approx(expected)
    moved = np.roll(real, 3, axis=-1)  # the same levels elsewhere
    assert misplaced_levels(level_fractions([moved]), level_fractions(blocks)) == 0
