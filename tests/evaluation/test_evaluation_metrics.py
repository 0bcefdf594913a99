"""Each metric's values from its two sides, on a feature network that a reader can compute by hand."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.evaluation import distances as distances_module
from ddpm.evaluation import features as features_module
from ddpm.evaluation import inputs as inputs_module
from ddpm.evaluation import memorisation as memorisation_module
from ddpm.evaluation import metrics as metrics_module
from ddpm.evaluation.distances import Moments, frechet_distance, kernel_distance, manifold_metrics, moments_of
from ddpm.evaluation.evaluate import DEFAULT_NUM
from ddpm.evaluation.features import FeatureNetwork, extract
from ddpm.evaluation.image_sets import DatasetImages, GeneratedImages, ImageSet, subset_rows
from ddpm.evaluation.inputs import REQUIREMENTS, EvaluationInputs
from ddpm.evaluation.likelihood import Likelihood, Term
from ddpm.evaluation.metrics import METRICS, choose_metrics
from ddpm.evaluation.sweep import BUDGETS

SHAPE = (3, 4, 6)
CLASSES = ["cat", "dog", "emu"]
WEIGHTS = np.random.default_rng(4).normal(size=(math.prod(SHAPE), 7)) / 900


class Images(ImageSet):
    """uint8 images in memory, with as many levels per channel as a test can tell apart."""

    def __init__(self, seed: int, n: int, labels=None, names=CLASSES, chunk=512):
        bright = torch.tensor([40 + 9 * seed, 90, 160 - 11 * seed]).reshape(1, 3, 1, 1)
        draw = torch.Generator().manual_seed(seed)
        self.images = (bright + torch.randint(-30, 40, (n, *SHAPE), generator=draw)).to(torch.uint8)
        self.title, self.fingerprint, self.shape, self.chunk = f"set {seed}", f"{seed} {n} {chunk}", SHAPE, chunk
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.class_names = None if labels is None else names

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.images[rows]


def by_hand(images: Images) -> np.ndarray:
    """Features (n, 4) and logits (n, 3) of all images."""
    return images.images.flatten(1).double().numpy() @ WEIGHTS


def network(standard: bool = False) -> FeatureNetwork:
    def compute(images):
        return (images.flatten(1).double().numpy() @ WEIGHTS).astype(np.float32)

    return FeatureNetwork("plain", standard, 4, 3, "weights", "as it is", "numpy", compute)


def inputs_of(tmp_path, standard=False, **changes) -> EvaluationInputs:
    inputs = EvaluationInputs(
        candidate=Images(0, 14, [0, 0, 1, 1, 1, 2, 2, 0, 1, 2, 2, 1, 0, 1], ["emu", "cat", "dog"]),
        reference=Images(1, 21, [i % 3 for i in range(21)]),
        load_network=lambda: network(standard),
        pictures=tmp_path / "shown",
        held_out=Images(2, 9, [i % 3 for i in range(9)], ["dog", "emu", "cat"]),
        progress=False,
    )
    return replace(inputs, **changes)


def moments_by_hand(x: np.ndarray) -> Moments:
    return Moments(x.mean(0), np.cov(x, rowvar=False), len(x))


def values(name: str, inputs: EvaluationInputs) -> dict:
    assert METRICS[name].missing(inputs) == ""
    return {one.key: one for one in METRICS[name].evaluate(inputs)}


@pytest.mark.parametrize("chunk", [1, 4, 7, 14, 100])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_extracted_features_belong_to_their_images_at_any_chunk_and_batch(monkeypatch, chunk, batch):
    monkeypatch.setattr(features_module, "BATCH", batch)
    images = Images(3, 14, chunk=chunk)
    found = extract(images, network(), progress=False)
    answer = by_hand(images)
    np.testing.assert_allclose(found.features[:], answer[:, :4], rtol=1e-5)
    np.testing.assert_allclose(found.logits[:], answer[:, 4:], rtol=1e-5)
    np.testing.assert_allclose(found.channel_means[:], images.images.double().mean((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.features[np.array([12, 3, 0, 13])], answer[[12, 3, 0, 13], :4], rtol=1e-5)
    np.testing.assert_allclose(found.logits[3:11:2], answer[3:11:2, 4:], rtol=1e-5)
    for _ in range(2):  # computed, and read again
        moments = found.moments()
        np.testing.assert_allclose(moments.mu, answer[:, :4].mean(0), rtol=1e-5)
        np.testing.assert_allclose(moments.sigma, np.cov(answer[:, :4], rowvar=False), rtol=1e-3)
        assert moments.n == 14


@pytest.mark.parametrize(("standard", "key"), [(True, "fid"), (False, "frechet_distance")])
def test_fid_compares_the_candidate_with_the_reference(tmp_path, standard, key):
    inputs = inputs_of(tmp_path, standard)
    ours, real = by_hand(inputs.candidate)[:, :4], by_hand(inputs.reference)[:, :4]
    expected = frechet_distance(moments_by_hand(ours), moments_by_hand(real))
    (one,) = values("fid", inputs).values()
    assert (one.key, one.note) == (key, "")
    assert one.value == pytest.approx(expected, rel=1e-3)
    held = moments_by_hand(by_hand(inputs.held_out)[:, :4])
    precomputed = inputs_of(tmp_path, reference=held)
    expected = frechet_distance(moments_by_hand(ours), held)
    assert next(iter(values("fid", precomputed).values())).value == pytest.approx(expected, rel=1e-3)
    beside = Images(1, 21)
    beside.moments = held  # stored with the images
    assert next(iter(values("fid", inputs_of(tmp_path, reference=beside)).values())).value == pytest.approx(
        expected, rel=1e-3
    )


def test_moments_of_another_network_beside_the_images_are_ignored(tmp_path):
    inputs = inputs_of(tmp_path)
    expected = METRICS["fid"].compute(inputs)[0].value
    inputs.reference.moments = Moments(np.zeros(7), np.eye(7), 50)
    again = inputs_of(tmp_path, reference=inputs.reference)
    assert again.precomputed_moments is None
    assert METRICS["fid"].compute(again)[0].value == expected


@pytest.mark.parametrize(("ours", "theirs"), [(4, 4), (3, 9), (9, 3), (2, 2)])
def test_fid_needs_as_many_images_as_dimensions_unless_it_is_forced(tmp_path, ours, theirs):
    """On both sides; exactly as many are enough."""
    sides = {"candidate": Images(0, ours), "reference": Images(1, theirs)}
    inputs = inputs_of(tmp_path, **sides)
    enough = min(ours, theirs) >= 4
    assert (METRICS["fid"].missing(inputs) == "") is enough
    forced = inputs_of(tmp_path, **sides, force=True)
    (one,) = values("fid", forced).values()
    assert one.note == ("" if enough else f"BIASED: {min(ours, theirs)} images are too few")


def test_kernel_distance_is_over_both_sides_features(tmp_path):
    inputs = inputs_of(tmp_path)
    ours, real = (by_hand(images)[:, :4] for images in (inputs.candidate, inputs.reference))
    expected = kernel_distance(ours.astype(np.float32), real.astype(np.float32))
    one = values("kid", inputs)["kid"]
    assert (one.value, one.error) == pytest.approx((expected.mean, expected.std), rel=1e-4)
    assert one.note == "± over 100 subsets of 14"


def test_class_kid_matches_classes_by_name_and_shows_the_worst(tmp_path):
    """The candidate numbers its classes in another order than the reference."""
    inputs = inputs_of(tmp_path)
    ours, real = (by_hand(images)[:, :4].astype(np.float32) for images in (inputs.candidate, inputs.reference))
    expected = {}
    for name in CLASSES:
        mine = ours[[i for i, label in enumerate(inputs.candidate.labels) if ["emu", "cat", "dog"][label] == name]]
        theirs = real[[i for i, label in enumerate(inputs.reference.labels) if CLASSES[label] == name]]
        expected[name] = kernel_distance(mine, theirs, subsets=20)
    worst = max(CLASSES, key=lambda name: expected[name].mean)
    one = values("class_kid", inputs)["class_kid"]
    assert one.value == pytest.approx(expected[worst].mean, rel=1e-4)
    assert one.error == pytest.approx(expected[worst].std, rel=1e-4)
    assert one.note.startswith(f"class {worst};")
    assert {name: row["kid"] for name, row in one.detail.items()} == pytest.approx(
        {name: value.mean for name, value in expected.items()}, rel=1e-4
    )


@pytest.mark.parametrize("most", [10, 10_000])
def test_precision_is_of_the_candidate_and_recall_of_the_reference(tmp_path, monkeypatch, most):
    monkeypatch.setattr(metrics_module, "MANIFOLD_IMAGES", most)
    inputs = inputs_of(tmp_path)
    ours, real = (by_hand(images)[:, :4].astype(np.float32) for images in (inputs.candidate, inputs.reference))
    expected = manifold_metrics(real[subset_rows(21, most)], ours[subset_rows(14, most)])
    found = values("prdc", inputs)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    for name, one in found.items():
        assert one.value == pytest.approx(getattr(expected, name))
        k = 3 if name in ("precision", "recall") else 5
        assert one.note == f"k = {k}, {min(14, most)} against {min(21, most)}"


def test_inception_score_reads_the_candidates_logits(tmp_path):
    inputs = inputs_of(tmp_path)
    logits = by_hand(inputs.candidate)[:, 4:].astype(np.float32).astype(float)
    order, scores = np.random.RandomState(2020).permutation(14), []
    for split in range(10):
        rows = logits[order[split * 14 // 10 : (split + 1) * 14 // 10]]
        p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        scores.append(math.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    one = values("is", inputs)["inception_score"]
    assert (one.value, one.error) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-5, abs=1e-8)


def test_drift_is_the_candidates_mean_level_minus_the_references(tmp_path):
    inputs = inputs_of(tmp_path)
    ours, real = (images.images.double().mean((2, 3)) for images in (inputs.candidate, inputs.reference))
    found = values("drift", inputs)
    assert list(found) == ["drift_red", "drift_green", "drift_blue"]
    for channel, one in enumerate(found.values()):
        assert one.value == pytest.approx(float(ours[:, channel].mean() - real[:, channel].mean()), abs=1e-4)
        error = (ours[:, channel].var() / 14 + real[:, channel].var() / 21).sqrt()
        assert one.error == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 14, 100])
def test_levels_are_counted_over_all_images_at_any_chunk(tmp_path, chunk):
    inputs = inputs_of(tmp_path, candidate=Images(0, 14, chunk=chunk), reference=Images(1, 21, chunk=chunk))
    differences = []
    for channel in range(3):
        ours, real = (images.images[:, channel].flatten().tolist() for images in (inputs.candidate, inputs.reference))
        levels = [abs(ours.count(v) / len(ours) - real.count(v) / len(real)) for v in range(256)]
        differences.append(sum(levels) / 2)
    assert values("levels", inputs)["levels"].value == pytest.approx(sum(differences) / 3)


def test_memorisation_looks_for_samples_and_test_images_among_the_training_images(tmp_path):
    inputs = inputs_of(tmp_path)
    found = values("memorisation", inputs)

    def nearest(query, base):
        return np.linalg.norm(query[:, None] - base[None], axis=2).min(1)

    def pixels(images, turned=False):
        return (images.images.flip(-1) if turned else images.images).flatten(1).double().numpy() / 255

    distances = {
        "pixels": [
            np.minimum(*(nearest(pixels(images, turned), pixels(inputs.reference)) for turned in (False, True)))
            for images in (inputs.candidate, inputs.held_out)
        ],
        "features": [
            nearest(by_hand(images)[:, :4], by_hand(inputs.reference)[:, :4])
            for images in (inputs.candidate, inputs.held_out)
        ],
    }
    for key, (ours, test) in distances.items():
        copies, nearer = found[f"copies_{key}"], found[f"nearer_{key}"]
        assert copies.value == pytest.approx((ours < np.quantile(test, 0.01)).mean())
        assert nearer.value == pytest.approx((ours[:, None] < test).mean())
        assert copies.detail["nearest_distance"] == pytest.approx(ours.min(), rel=1e-3)
        assert copies.detail["median_distance"] == pytest.approx(np.median(ours), rel=1e-3)
        assert copies.detail["median_test_distance"] == pytest.approx(np.median(test), rel=1e-3)
    assert inputs.drawn == [tmp_path / "shown-closest-pairs.png"]
    assert inputs.drawn[0].is_file()


@pytest.mark.parametrize("most", [5, 2000])
def test_likelihood_is_that_of_held_out_images_with_the_models_labels(tmp_path, monkeypatch, most):
    calls = []

    def evaluated(model, images, labels=None, **options):
        calls.append((model, images, labels))
        return Likelihood(3.5, 0.25, len(images), 10, 72, 0.1, [Term(0, 0, 3.0, 2.0), Term(1, 4, 0.4, 9.0)])

    monkeypatch.setattr(inputs_module, "evaluate_likelihood", evaluated)
    monkeypatch.setattr(inputs_module, "LIKELIHOOD_IMAGES", most)
    drawn = []
    monkeypatch.setattr(metrics_module, "plot_likelihood", lambda found, path: drawn.append((found.images, path)))
    model = type("Model", (), {"class_names": ["cat", "dog", "emu"]})()
    inputs = inputs_of(tmp_path, model=model)
    one = values("nll", inputs)["nll"]
    rows = subset_rows(9, most)
    assert torch.equal(calls[0][1], inputs.held_out.images[rows])
    assert calls[0][2].tolist() == [(row % 3 + 1) % 3 for row in rows.tolist()]  # dog, emu, cat are 1, 2, 0
    assert (one.value, one.error) == (3.5, 0.25)
    assert one.detail["rate_distortion"] == [(0.1 + 0.4 * 3 / 8, 9.0), (0.5, 2.0), (3.5, 0.0)]
    assert one.detail["terms"][1] == {"first": 1, "last": 4, "bits": 0.4, "rmse": 9.0}
    assert drawn == [(len(rows), tmp_path / "shown-likelihood.png")]
    model.class_names = None
    values("nll", inputs_of(tmp_path, model=model))
    assert calls[1][2] is None


def test_accuracy_score_is_that_of_samples_beside_that_of_real_images(tmp_path, monkeypatch):
    seen = []

    def score(generated, training, test, progress):
        seen.append((generated, training, test))
        return 0.5, 0.75, 14

    monkeypatch.setattr(metrics_module, "classification_accuracy_score", score)
    inputs = inputs_of(tmp_path)
    one = values("cas", inputs)["cas"]
    assert seen == [(inputs.candidate, inputs.reference, inputs.held_out)]
    assert (one.value, one.detail) == (0.5, {"real": 0.75})
    assert "on 9 of set 2, after training on 14 samples; 75.00%" in one.note


@pytest.mark.parametrize(
    ("name", "enough"), [("kid", 2), ("class_kid", 2), ("prdc", 6), ("is", 10), ("drift", 2), ("levels", 1)]
)
@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_metrics_need_so_many_images_on_either_side(tmp_path, name, enough, side):
    for n in {max(1, enough - 1), enough}:
        inputs = inputs_of(tmp_path, **{side: Images(5, n, [0] * n)})
        assert (METRICS[name].missing(inputs) == "") == (n >= enough)
        if n < enough:
            with pytest.raises(UserError, match=f"{name} needs at least {enough} images, and .* has {n}"):
                choose_metrics(inputs, [name])


def test_two_images_have_moments_and_one_has_none():
    assert moments_of([np.eye(2)]).n == 2
    with pytest.raises(UserError, match="at least two images, not 1"):
        moments_of([np.eye(2)[:1]])


def test_classes_of_the_candidate_are_compared_with_the_images_in_question(monkeypatch):
    monkeypatch.setattr("ddpm.evaluation.inputs._class_problem", lambda mine, others: f"{mine} and {others}")
    inputs = SimpleNamespace(candidate="samples", real="training images", test="test images")
    assert REQUIREMENTS["classes"](inputs) == "samples and training images"
    assert REQUIREMENTS["held-out classes"](inputs) == "samples and test images"


@pytest.mark.parametrize(("counts", "others"), [([29, 30, 141], 0), ([20, 30, 150], 1), ([5, 2, 193], 3)])
def test_class_proportions_differ_by_a_fraction_of_the_larger_one(monkeypatch, counts, others):
    """A third less is less, however rare the class is; the whole difference decides whether there is a note."""
    monkeypatch.setattr("ddpm.evaluation.inputs.PROPORTIONS_DIFFER", 0.0)
    names, reference = ["a", "b", "c"], [30, 30, 140]
    sampled, real = (torch.arange(3).repeat_interleave(torch.tensor(each)) for each in (counts, reference))
    candidate, other = object.__new__(GeneratedImages), object.__new__(DatasetImages)
    candidate.labels, candidate.class_names, candidate.title = sampled, names, "samples"
    other.dataset, other.class_names = SimpleNamespace(labels=real), names
    note = EvaluationInputs.proportions_note.func(SimpleNamespace(candidate=candidate, reference=other))
    assert f"{others} of 3 classes" in note


def test_metrics_over_all_classes_at_once_carry_the_note_on_proportions():
    """Those within classes, and those of one image at a time, do not change with the proportions."""
    assert {name for name, metric in METRICS.items() if metric.mixes_classes} == {"fid", "kid", "drift", "levels"}


@pytest.mark.parametrize("standard", [True, False])
@pytest.mark.parametrize("name", ["fid", "kid", "class_kid", "prdc"])
def test_only_numbers_of_the_standard_network_bear_the_published_name(tmp_path, name, standard):
    """Others name their features, so that nobody compares them with a paper."""
    for one in METRICS[name].evaluate(inputs_of(tmp_path, standard)):
        assert ("(plain features)" in one.title) == (not standard)


def test_the_guide_names_the_numbers_that_are_used():
    text = (Path(__file__).parents[2] / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    guide = " ".join(text.split())
    *budgets, last = BUDGETS
    names = [f"`{name}`" for name in metrics_module.DEFAULT]
    for words in (
        f"from a model, by default {DEFAULT_NUM:,}.",
        f"The default is {', '.join(map(str, budgets))} and {last}, up to",
        f"By default {', '.join(names[:-1])} and {names[-1]} are computed",
        f"among the real images (k = {distances_module.PRECISION_NEIGHBOURS})",
        f"*Density* and *coverage* (k = {distances_module.DENSITY_NEIGHBOURS})",
        f"At most {metrics_module.MANIFOLD_IMAGES:,} images per side",
        f"Two sets of equal size, up to {distances_module.SUBSET_SIZE:,} images",
        f"nearer than {1 - memorisation_module.QUANTILE:.0%} of the test images; {memorisation_module.QUANTILE:.0%} if",
        f"by more than {inputs_module.PROPORTIONS_DIFFER:.0%} (total variation)",
        f"{inputs_module.LIKELIHOOD_IMAGES:,} test images are used",
    ):
        assert words in guide
