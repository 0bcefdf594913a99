"""Evaluation end to end on tiny sets: planted failures, resuming, sharing the work, what is refused, the command."""

import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ddpm.cli import run
from ddpm.data import DataConfig, LazyDataset, open_dataset, opening
from ddpm.errors import RunStopped, UserError
from ddpm.evaluation import accuracy_score
from ddpm.evaluation import images as images_module
from ddpm.evaluation.cache import Chunks
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.extract import extract
from ddpm.evaluation.features import load_features
from ddpm.evaluation.frechet import moments_of
from ddpm.evaluation.images import DatasetImages, GeneratedImages
from ddpm.evaluation.kernel import kernel_distance
from ddpm.evaluation.metrics import METRICS
from ddpm.evaluation.monitor import training_evaluator
from ddpm.evaluation.opening import open_images, open_judged, open_test
from ddpm.evaluation.sweep import sweep
from ddpm.model import OUTPUTS, Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig
from ddpm.pixels import to_uint8
from ddpm.process.config import ProcessConfig


@pytest.fixture(scope="module")
def digits():
    """4,000 digits, mixed, as (uint8 N,H,W,1; labels)."""
    data = open_dataset("digits", image_size=28, channels=1, labels=True)
    images, labels = data.draw(0, range(4000))
    return images.permute(0, 2, 3, 1).numpy(), labels.numpy()


@pytest.fixture(scope="module")
def network():
    return load_features("builtin", torch.device("cpu"))


@pytest.fixture(scope="module")
def model():
    """A class-conditional model of 8x8 images that has learned nothing."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)
    unet = UNet(config, (8, 8), in_channels=3, out_channels=3, num_classes=4)
    process = ProcessConfig(timesteps=8).process()
    return Model(unet, process, image_shape=(3, 8, 8), class_names=["a", "b", "c"], null_label=3)


def save(path, images, labels=None):
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": labels})
    np.savez(path, **arrays)
    return str(path)


def blurred(images, radius):
    return np.stack([np.asarray(Image.fromarray(x[..., 0]).filter(ImageFilter.GaussianBlur(radius))) for x in images])


def test_planted_failures_move_their_metrics(digits, network, tmp_path):
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
    for spoiled in (smeared, narrow):
        assert spoiled.value("frechet_distance") > 5 * sound.value("frechet_distance")
        assert spoiled.value("kid") > 5 * abs(sound.value("kid"))
    assert narrow.value("recall") < sound.value("recall") - 0.3
    assert narrow.value("coverage") < sound.value("coverage") - 0.3
    assert narrow.value("precision") > 0.9 * sound.value("precision")  # what is drawn looks right


def test_copied_training_images_are_found_mirrored_too(digits, network, tmp_path):
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
    nearest = next(figure.detail for figure in caught.figures if figure.key == "copies_pixels")
    assert nearest["nearest_distance"] == 0
    assert Image.open(tmp_path / "copied-closest-pairs.png").size[1] > 4 * 28


def test_class_kid_names_the_class_that_went_wrong(digits, network, tmp_path):
    images, labels = digits
    real = save(tmp_path / "real.npz", images[:1000], labels[:1000])
    spoiled = images[1000:2000].copy()
    of_seven = labels[1000:2000] == 7
    spoiled[of_seven] = blurred(spoiled[of_seven], 2)[..., None]
    judged = save(tmp_path / "judged.npz", spoiled, labels[1000:2000])
    report = evaluate(judged, real, metrics=["class_kid"], features=network, progress=False)
    assert report.figures[0].note.startswith("class 7")
    assert len(report.figures[0].detail) == 10


def test_accuracy_score_falls_with_wrong_labels(digits, monkeypatch, tmp_path):
    """Noughts and ones only, so that a very short training is enough."""
    monkeypatch.setattr(accuracy_score, "SEEN", 600)
    images, labels = (part[digits[1] < 2] for part in digits)
    training = open_images(save(tmp_path / "training.npz", images[:100], labels[:100]))
    test = open_images(save(tmp_path / "test.npz", images[200:400], labels[200:400]))
    wrong = open_images(save(tmp_path / "wrong.npz", images[100:200], 1 - labels[100:200]))
    score = accuracy_score.classification_accuracy_score(wrong, training, test, progress=False)
    assert score.generated < 0.2
    assert score.real > 0.8


def test_both_classifiers_see_equally_many_images(digits, monkeypatch, tmp_path):
    """Where there are more samples than real images, too."""
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
        score = accuracy_score.classification_accuracy_score(generated, training, test, progress=False)
        assert score.images == 60
    assert seen == [60] * 4


def counting(network):
    """The same network, and a list of how many images each call saw."""
    calls = []

    def compute(images):
        calls.append(len(images))
        return network.compute(images)

    return replace(network, compute=compute), calls


def test_what_was_extracted_is_not_extracted_again(digits, network, tmp_path):
    source = open_images(save(tmp_path / "a.npz", digits[0][:1300]))
    counted, calls = counting(network)
    first = extract(source, counted, progress=False).features[:]
    assert sum(calls) == 1300
    again = extract(source, counted, progress=False)
    assert sum(calls) == 1300
    np.testing.assert_array_equal(first, again.features[:])
    assert again.moments().n == 1300
    np.testing.assert_allclose(again.moments().sigma, np.cov(first, rowvar=False), atol=1e-6)
    extract(source, replace(counted, fingerprint="another network"), progress=False)
    assert sum(calls) == 2600


def test_a_killed_extraction_goes_on(digits, network, tmp_path):
    source = open_images(save(tmp_path / "a.npz", digits[0][:1300]))
    counted, calls = counting(network)

    def dies(images):
        if sum(calls) >= 700:
            raise KeyboardInterrupt
        return counted.compute(images)

    with pytest.raises(KeyboardInterrupt):
        extract(source, replace(network, compute=dies), progress=False)
    calls.clear()
    found = extract(source, counted, progress=False)
    assert sum(calls) == 1300 - 512
    expected, _ = network(source[:])
    np.testing.assert_allclose(found.features[:], expected, atol=1e-4)
    np.testing.assert_allclose(found.channel_means[:], source[:].float().mean((2, 3)), atol=1e-4)


def test_processes_share_without_meeting(digits, network, tmp_path, monkeypatch):
    source = open_images(save(tmp_path / "a.npz", digits[0][:1300]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        counted, calls = counting(network)
        found = extract(source, counted, progress=False)
        shares.append(sum(calls))
    assert sorted(shares) == [512, 788]
    np.testing.assert_allclose(found.features[:], network(source[:])[0], atol=1e-4)


def test_memory_does_not_grow_with_the_number_of_images(network, tmp_path):
    """What Python holds while features are extracted, summed up and compared; maps of files do not count."""
    stub = replace(network, compute=lambda images: images.flatten(1)[:, :64].numpy().astype(np.float32))
    peaks = []
    for size in (1024, 8192):
        pixels = np.random.default_rng(size).integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
        images = open_images(save(tmp_path / f"{size}.npz", pixels))
        tracemalloc.start()
        features = extract(images, stub, progress=False)
        features.moments()
        kernel_distance(features.features, features.features, subsets=3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_labels_of_a_set_too_large_for_memory_are_asked_for_in_chunks(digits, tmp_path, monkeypatch):
    """When they are needed, and never all its images at once; a broken image has the class of what replaces it."""
    for number, image in enumerate(digits[0][:10]):
        path = tmp_path / "set" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    (tmp_path / "set" / "0" / "8.png").write_bytes(b"broken")  # the last of its class
    monkeypatch.setattr(opening, "MOST_MEMORY_BYTES", 100)
    monkeypatch.setattr(images_module, "CHUNK", 4)
    asked, batch = [], LazyDataset.batch
    monkeypatch.setattr(LazyDataset, "batch", lambda self, rows: asked.append(len(rows)) or batch(self, rows))
    images = open_images(str(tmp_path / "set"))
    assert asked == []
    labels, names = images.classes()
    assert (labels.tolist(), names) == ([0] * 4 + [1] * 6, ["0", "1"])
    assert max(asked) == 4


def test_cache_of_other_settings_is_never_read(digits, network, tmp_path, cache):
    source = open_images(save(tmp_path / "a.npz", digits[0][:100]))
    extract(source, network, progress=False)
    (note,) = cache.glob("evaluation/features-*/settings.json")
    note.write_text(note.read_text().replace(network.fingerprint, "tampered"))
    with pytest.raises(RunStopped, match="other settings"):
        extract(source, network, progress=False)


def test_generated_images_are_the_models_and_extend(model):
    options = {"steps": 3, "seed": 5, "batch_size": 4, "precision": "fp32"}
    images = GeneratedImages(model, 10, **options)
    images.prepare(progress=False)
    assert torch.equal(images[:], to_uint8(model.sample(10, **options)))
    assert images.labels.tolist() == [0, 1, 2] * 3 + [0]
    assert images.evaluations == 3
    more = GeneratedImages(model, 14, **options)
    assert more.fingerprint == images.fingerprint
    assert GeneratedImages(model, 10, **{**options, "seed": 6}).fingerprint != images.fingerprint
    smaller = replace(
        model.process, variance="fixed_small" if model.process.variance != "fixed_small" else "fixed_large"
    )
    other = Model(model.network, smaller, image_shape=(3, 8, 8), class_names=model.class_names, null_label=3)
    assert other.weights_hash == model.weights_hash
    assert GeneratedImages(other, 10, **options).fingerprint != images.fingerprint


@pytest.mark.parametrize(("sizes", "attention"), [([(8, 8), (16, 16)], []), ([(8, 16), (8, 32)], [4])])
def test_images_of_another_size_are_not_read(sizes, attention):
    """The same weights draw them, where no attention ties these to a size."""
    config = NetworkConfig(channels=8, channel_mult=[1, 1], blocks=1, attention=attention, groups=4)
    weights = UNet(config, (8, 16), in_channels=3, out_channels=3).state_dict()
    found = []
    for size in sizes:
        network = UNet(config, size, in_channels=3, out_channels=3)
        network.load_state_dict(weights)
        of_size = Model(network, ProcessConfig(timesteps=8).process(), image_shape=(3, *size))
        found.append(GeneratedImages(of_size, 10, batch_size=4))
    assert found[0].settings["weights"] == found[1].settings["weights"]
    assert found[0].fingerprint != found[1].fingerprint


def test_images_of_earlier_samplers_are_not_read(model, monkeypatch):
    before = GeneratedImages(model, 10).fingerprint
    monkeypatch.setattr("ddpm.model.OUTPUTS", OUTPUTS + 1)
    assert GeneratedImages(model, 10).fingerprint != before


def test_a_model_is_judged_with_all_that_makes_it_comparable(model, network, tmp_path):
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
    assert stored["figures"]["kid"]["value"] == report.value("kid")
    assert (tmp_path / "x-likelihood.png").exists()


def test_ready_moments_give_the_same_distance(digits, network, tmp_path):
    judged, real = save(tmp_path / "a.npz", digits[0][:300]), save(tmp_path / "b.npz", digits[0][300:700])
    moments_of([network(open_images(real)[:])[0]]).save(tmp_path / "moments.npz")
    ready = evaluate(judged, str(tmp_path / "moments.npz"), features=network, progress=False)
    full = evaluate(judged, real, metrics=["fid"], features=network, progress=False)
    assert [figure.key for figure in ready.figures] == ["frechet_distance"]
    assert ready.value("frechet_distance") == pytest.approx(full.value("frechet_distance"), rel=1e-4)
    assert ready.settings["reference_n"] == 400


def test_what_cannot_be_is_refused(digits, network, model, tmp_path):
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
    refused("moments, which go with --data", moments, grey)
    refused("are for a model", grey, grey, num=5)
    refused("holds grey images, and the model draws colour", model, grey, num=70)
    forced = evaluate(grey, grey, metrics=["fid"], features=network, force=True, progress=False)
    assert "BIASED" in forced.table()


def test_a_colour_model_of_a_grey_set_takes_its_other_split(model, tmp_path, digits):
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        Image.fromarray(digits[0][0][..., 0]).save(tmp_path / "set" / split / "0.png")
    source = str(tmp_path / "set")
    judged = Model(model.network, model.process, image_shape=(3, 8, 8))
    judged.provenance = {"config": {"data": {"source": source}}}
    assert open_test(None, source, judged).shape == (3, 8, 8)
    with pytest.raises(UserError, match="holds grey images"):
        open_test(f"{tmp_path}/set/test", source, judged)


def test_held_out_images_of_a_hub_set_keep_its_row_filter(model, tmp_path, monkeypatch):
    """Never training images, and grey ones for a colour model that was trained on them."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    for split, count in (("train", 9), ("test", 6)):
        rows = {"image": [Image.new("L", (8, 8), n) for n in range(count)], "style": [*"abc"] * (count // 3)}
        features = datasets.Features({"image": datasets.Image(), "style": datasets.Value("string")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    source = f"hf:{tmp_path}/set"
    judged = Model(model.network, model.process, image_shape=(3, 8, 8))
    judged.provenance = {"config": {"data": {"source": f"{source}?style=a,b"}}}
    assert len(open_test(None, f"{source}?style=a,b", judged)) == 4
    assert len(open_test(None, source, judged)) == 6
    for split in ("train", "test"):
        assert open_test(None, f"{source}:{split}?style=a,b", judged) is None


def test_a_bundled_model_comes_before_a_folder_of_its_name(tmp_path):
    """As everywhere else; the folder is reached as ./digits."""
    (tmp_path / "digits").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "digits" / "0.png")
    assert isinstance(open_judged("digits"), Model)
    assert isinstance(open_judged("./digits"), DatasetImages)


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


def test_a_share_is_read_while_another_process_still_makes_the_first():
    chunks = Chunks("features", {"of": "a test"}, total=10, chunk=4)
    chunks.write(4, np.arange(4, 8))
    assert chunks[[5, 7]].tolist() == [5, 7]


@pytest.mark.parametrize("by_text", ["images", "names"])
def test_classes_named_by_numbers_are_matched_by_name_in_whatever_order(tmp_path, by_text):
    numbers = [str(number) for number in range(12)]
    images = open_images(save(tmp_path / "a.npz", np.zeros((12, 8, 8, 3), np.uint8)))
    images.class_names, images.labels = sorted(numbers) if by_text == "images" else numbers, torch.arange(12)
    names = numbers if by_text == "images" else sorted(numbers)
    found = accuracy_score.matched(images, names)
    assert [names[label] for label in found] == images.class_names


def test_the_figures_of_a_model_folder_go_into_its_card(model, tmp_path, capsys):
    random = np.random.default_rng(0)
    real = save(tmp_path / "real.npz", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    model.save(tmp_path / "model")
    words = ["evaluate", str(tmp_path / "model"), "--data", real, "--features", "builtin", "--metrics", "kid"]
    assert run([*words, "--num", "12", "--steps", "2", "--out", str(tmp_path / "e.json")]) == 0
    assert "README.md" in capsys.readouterr().out
    (line,) = (line for line in (tmp_path / "model" / "README.md").read_text().splitlines() if "12 images" in line)
    value = json.loads((tmp_path / "e.json").read_text())["figures"]["kid"]["value"]
    assert "2 steps of dpm++" in line
    assert f"| {value:.6g} |" in line


def test_the_card_keeps_figures_apart_that_were_made_in_other_ways(model, tmp_path, monkeypatch):
    """Each is a line of its own, and the same call a second time is none."""
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
        assert sum(f"copies by {name} features: {how}, against" in line for line in lines) == 1


def test_command_line(digits, tmp_path, capsys):
    judged, real = save(tmp_path / "a.npz", digits[0][:90]), save(tmp_path / "b.npz", digits[0][100:200])
    words = ["evaluate", judged, "--data", real, "--features", "builtin"]
    assert run([*words, "--metrics", "fid,kid"]) == 0
    assert "Fréchet distance (builtin features)" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "evaluation.json").read_text())["figures"]) == {"frechet_distance", "kid"}
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


def test_two_launched_processes_find_what_one_does(model, tmp_path):
    """As the documentation launches them, to the last digit."""
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
    assert one["figures"] == two["figures"]
    assert one["settings"] == two["settings"]
    assert sorted(path.name for path in (tmp_path / "another" / "evaluation").glob("likelihood-*/*.npy")) == [
        "00000000-00001024.npy",
        "00001024-00001200.npy",
    ]


def test_command_line_sweep_draws_a_picture(model, tmp_path, capsys):
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


def test_a_sweep_s_files_are_named_after_out(model, tmp_path):
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


def test_every_metric_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert not [name for name in METRICS if f"`{name}`" not in text]
