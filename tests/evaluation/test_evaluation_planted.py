"""Planted failures change the metrics that should detect them."""

import numpy as np
import pytest
import torch
from evaluation_cases import save
from PIL import Image, ImageFilter

from ddpm.evaluation import classifier as accuracy_score
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.opening import open_images


def blurred(images, radius):
    return np.stack([np.asarray(Image.fromarray(x[..., 0]).filter(ImageFilter.GaussianBlur(radius))) for x in images])


def test_metrics_detect_planted_failures(digits, network, tmp_path):
    images, labels = digits
    real = save(tmp_path / "real.npz", images[:800], labels[:800])
    names = ["fid", "kid", "prdc", "drift", "levels"]

    def judge(name, planted):
        return evaluate(save(tmp_path / name, planted), real, metrics=names, features=network, progress=False)

    good, rest = images[800:1600], labels[800:1600]
    sound = judge("sound.npz", good)
    tinted = judge("tinted.npz", np.clip(good.astype(int) + 12, 0, 255).astype(np.uint8))
    smeared = judge("blurred.npz", blurred(good, 2))
    narrow = judge("narrow.npz", good[rest < 3])
    specks = (np.arange(good.size) % 3).reshape(good.shape)
    speckled = judge("speckled.npz", np.where(good == 0, specks, good).astype(np.uint8))

    assert abs(sound.value("drift_grey")) < 3
    assert tinted.value("drift_grey") > 8
    assert sound.value("levels") < 0.05
    assert speckled.value("levels") > 0.4  # two of three black pixels
    assert speckled.value("frechet_distance") < 2 * sound.value("frechet_distance")  # which does not see it
    assert smeared.value("precision") < sound.value("precision") - 0.1
    for degraded in (smeared, narrow):
        assert degraded.value("frechet_distance") > 5 * sound.value("frechet_distance")
        assert degraded.value("kid") > 5 * abs(sound.value("kid"))
    assert narrow.value("recall") < sound.value("recall") - 0.3
    assert narrow.value("coverage") < sound.value("coverage") - 0.3
    assert narrow.value("precision") > 0.9 * sound.value("precision")  # what is drawn looks right


def test_memorisation_finds_copies_also_mirrored(digits, network, tmp_path):
    images, _ = digits
    training, test = save(tmp_path / "training.npz", images[:800]), save(tmp_path / "test.npz", images[800:1200])
    copied = images[1200:1500].copy()
    copied[:30], copied[30:60] = images[:30], images[30:60, :, ::-1]

    def judge(name, planted, picture):
        return evaluate(
            save(tmp_path / name, planted),
            training,
            test=test,
            metrics=["memorisation"],
            features=network,
            pictures=tmp_path / picture,
            progress=False,
        )

    sound, caught = judge("new.npz", images[1500:1800], "sound"), judge("copies.npz", copied, "copied")
    assert sound.value("copies_pixels") < 0.05
    assert caught.value("copies_pixels") == pytest.approx(0.2, abs=0.05)
    assert caught.value("copies_features") >= 0.1  # features are not looked up mirrored
    assert sound.value("nearer_pixels") == pytest.approx(0.5, abs=0.08)
    nearest = next(one.detail for one in caught.metrics if one.key == "copies_pixels")
    assert nearest["nearest_distance"] == 0
    assert Image.open(tmp_path / "copied-closest-pairs.png").size[1] > 4 * 28


def test_class_kid_names_the_worst_class(digits, network, tmp_path):
    images, labels = digits
    real = save(tmp_path / "real.npz", images[:1000], labels[:1000])
    degraded = images[1000:2000].copy()
    of_seven = labels[1000:2000] == 7
    degraded[of_seven] = blurred(degraded[of_seven], 2)[..., None]
    judged = save(tmp_path / "judged.npz", degraded, labels[1000:2000])
    report = evaluate(judged, real, metrics=["class_kid"], features=network, progress=False)
    assert report.metrics[0].note.startswith("class 7")
    assert len(report.metrics[0].detail) == 10


def test_accuracy_score_is_low_for_wrong_labels(digits, monkeypatch, tmp_path):
    """Only zeros and ones, so a very short training is enough."""
    monkeypatch.setattr(accuracy_score, "SEEN", 600)
    images, labels = (part[digits[1] < 2] for part in digits)
    training = open_images(save(tmp_path / "training.npz", images[:100], labels[:100]))
    test = open_images(save(tmp_path / "test.npz", images[200:400], labels[200:400]))
    wrong = open_images(save(tmp_path / "wrong.npz", images[100:200], 1 - labels[100:200]))
    generated, real, _ = accuracy_score.classification_accuracy_score(wrong, training, test, progress=False)
    assert generated < 0.2
    assert real > 0.8


def test_accuracy_score_trains_both_classifiers_on_equally_many_images(digits, monkeypatch, tmp_path):
    """Also if there are more samples than real images."""
    monkeypatch.setattr(accuracy_score, "SEEN", 100)
    images, labels = digits
    fewer = open_images(save(tmp_path / "fewer.npz", images[:60], labels[:60]))
    more = open_images(save(tmp_path / "more.npz", images[60:160], labels[60:160]))
    test = open_images(save(tmp_path / "test.npz", images[200:300], labels[200:300]))
    seen, train = [], accuracy_score.train_classifier
    monkeypatch.setattr(
        accuracy_score,
        "train_classifier",
        lambda images, *rest, **o: seen.append(len(images)) or train(images, *rest, **o),
    )
    for generated, training in ((more, fewer), (fewer, more)):
        _, _, count = accuracy_score.classification_accuracy_score(generated, training, test, progress=False)
        assert count == 60
    assert seen == [60] * 4


@pytest.mark.parametrize("by_text", ["images", "names"])
def test_labels_in_matches_numeric_class_names_in_any_order(tmp_path, by_text):
    numbers = [str(number) for number in range(12)]
    images = open_images(save(tmp_path / "a.npz", np.zeros((12, 8, 8, 3), np.uint8)))
    images.class_names, images.labels = sorted(numbers) if by_text == "images" else numbers, torch.arange(12)
    names = numbers if by_text == "images" else sorted(numbers)
    found = images.labels_in(names)
    assert [names[label] for label in found] == images.class_names
