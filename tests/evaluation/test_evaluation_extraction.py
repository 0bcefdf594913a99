"""Images and features are computed once, divided among processes, resumed, and never confused with others."""

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_cases import save
from PIL import Image

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.pixels import to_uint8
from ddpm.data import LazyDataset
from ddpm.data import datasets as opening
from ddpm.diffusion.config import DiffusionConfig
from ddpm.evaluation import image_sets as images_module
from ddpm.evaluation.cache import Chunks
from ddpm.evaluation.distances import kernel_distance, load_moments
from ddpm.evaluation.features import extract
from ddpm.evaluation.image_sets import GeneratedImages
from ddpm.evaluation.likelihood import evaluate_likelihood
from ddpm.evaluation.opening import open_images
from ddpm.model import SAMPLING_CODE_VERSION, Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig


def counting(network):
    """The same network, and a list of how many images each call saw."""
    calls = []

    def compute(images):
        calls.append(len(images))
        return network.compute(images)

    return replace(network, compute=compute), calls


def test_extract_uses_the_cache(digits, network, tmp_path):
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


@pytest.mark.parametrize("left", [0, 600])
def test_features_moments_recompute_a_damaged_file(digits, network, tmp_path, left):
    found = extract(open_images(save(tmp_path / "a.npz", digits[0][:100])), network, progress=False)
    first = found.moments()
    (kept,) = found.chunks.folder.glob("moments-*.npz")
    os.truncate(kept, left)
    np.testing.assert_array_equal(found.moments().sigma, first.sigma)
    assert load_moments(kept).n == 100


def test_extract_resumes_after_a_kill(digits, network, tmp_path):
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


def test_extract_divides_the_work_among_processes(digits, network, tmp_path, monkeypatch):
    source = open_images(save(tmp_path / "a.npz", digits[0][:1300]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Chunks, "wait", lambda chunks: None)  # the two processes run one after the other
    shares = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        counted, calls = counting(network)
        found = extract(source, counted, progress=False)
        shares.append(sum(calls))
    assert sorted(shares) == [512, 788]
    np.testing.assert_allclose(found.features[:], network(source[:])[0], atol=1e-4)


def test_extract_needs_constant_memory(network, tmp_path):
    """Memory held by Python while features are extracted and compared; mapped files do not count."""
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


def test_dataset_images_read_labels_of_a_large_set_in_chunks(digits, tmp_path, monkeypatch):
    """Only on demand, never all images at once; a broken image has the class of its replacement."""
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


def test_extract_refuses_a_cache_with_other_settings(digits, network, tmp_path, cache):
    source = open_images(save(tmp_path / "a.npz", digits[0][:100]))
    extract(source, network, progress=False)
    (note,) = cache.glob("evaluation/features-*/settings.json")
    note.write_text(note.read_text().replace(network.fingerprint, "tampered"))
    with pytest.raises(RunStopped, match="other settings"):
        extract(source, network, progress=False)


@pytest.mark.parametrize("chunk", [4, 1000])
def test_generated_images_are_those_of_the_model_and_extend(model, monkeypatch, chunk):
    monkeypatch.setattr(images_module, "CHUNK", chunk)
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
        model.diffusion, variance="fixed_small" if model.diffusion.variance != "fixed_small" else "fixed_large"
    )
    other = Model(model.network, smaller, image_shape=(3, 8, 8), class_names=model.class_names, null_label=3)
    assert other.weights_hash == model.weights_hash
    assert GeneratedImages(other, 10, **options).fingerprint != images.fingerprint


@pytest.mark.parametrize(("sizes", "attention"), [([(8, 8), (16, 16)], []), ([(8, 16), (8, 32)], [4])])
def test_generated_images_differ_for_another_image_size(sizes, attention):
    """Without attention at a fixed size, the same weights sample images of several sizes."""
    config = NetworkConfig(channels=8, channel_mult=[1, 1], blocks=1, attention=attention, groups=4)
    weights = UNet(config, (8, 16), in_channels=3, out_channels=3).state_dict()
    found = []
    for size in sizes:
        network = UNet(config, size, in_channels=3, out_channels=3)
        network.load_state_dict(weights)
        of_size = Model(network, DiffusionConfig(timesteps=8).build(), image_shape=(3, *size))
        found.append(GeneratedImages(of_size, 10, batch_size=4))
    assert found[0].settings["weights"] == found[1].settings["weights"]
    assert found[0].fingerprint != found[1].fingerprint


def test_generated_images_differ_for_another_code_version(model, monkeypatch):
    before = GeneratedImages(model, 10).fingerprint
    monkeypatch.setattr("ddpm.model.SAMPLING_CODE_VERSION", SAMPLING_CODE_VERSION + 1)
    assert GeneratedImages(model, 10).fingerprint != before


def test_chunks_read_a_part_while_the_first_chunk_is_missing():
    chunks = Chunks("features", {"of": "a test"}, total=10, chunk=4)
    chunks.write(4, np.arange(4, 8))
    assert chunks[[5, 7]].tolist() == [5, 7]


def test_extract_refuses_features_that_are_not_finite(digits, network, tmp_path, cache):
    source = open_images(save(tmp_path / "a.npz", digits[0][:600]))
    means = source[0:600].flatten(1).float().mean(1)
    first = int((means == means[550]).nonzero()[0])
    assert first > 32  # not in the first batch

    def compute(images):
        found = network.compute(images)
        found[images.flatten(1).float().mean(1) == means[550]] = np.inf
        return found

    with pytest.raises(UserError, match=rf"builtin features of image {first} of .*a.npz are not finite"):
        extract(source, replace(network, compute=compute), progress=False)
    assert len(list(cache.glob("evaluation/features-*/*.npy"))) <= 1


def test_generated_images_refuse_a_model_with_damaged_weights(cache):
    config = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)
    unet = UNet(config, (8, 8), in_channels=3, out_channels=3)
    with torch.no_grad():
        next(unet.parameters()).fill_(torch.nan)
    damaged = Model(unet, DiffusionConfig(timesteps=8).build(), image_shape=(3, 8, 8))
    with pytest.raises(UserError, match="numbers that are not finite: the weights are not finite"):
        GeneratedImages(damaged, 4).prepare(progress=False)
    assert not list(cache.glob("evaluation/images-*/*.npy"))
    with pytest.raises(UserError, match="likelihood at timestep 0 is not finite"):
        evaluate_likelihood(damaged, torch.zeros(4, 3, 8, 8, dtype=torch.uint8), progress=False)


def test_generated_images_default_options_are_those_left_at_their_default(model):
    images = GeneratedImages(model, 4, sampler="ddim", steps=3, guidance=1.5, seed=0, labels="all", clip=None)
    assert {"spacing", "labels", "seed", "eta", "guidance_rescale", "batch_size", "precision"} == set(
        images.default_options
    )


def test_generated_images_have_the_labels_that_they_were_sampled_with(model):
    images = GeneratedImages(model, 7, labels=[2, 0], steps=2, batch_size=3, precision="fp32")
    images.prepare(progress=False)
    assert images.labels.tolist() == [2, 0, 2, 0, 2, 0, 2]
    for label in (0, 2):
        alone = to_uint8(model.sample(7, labels=label, steps=2, batch_size=3, precision="fp32"))
        rows = np.flatnonzero(images.labels.numpy() == label)
        assert torch.equal(images[rows], alone[torch.from_numpy(rows)])


@pytest.mark.parametrize("size", [1, 3, 7, images_module.CHUNK, images_module.CHUNK + 1])
def test_generated_images_come_in_chunks_of_whole_batches(model, size):
    """The least multiple of the batch size that reaches the usual chunk; one image is enough, none is not."""
    images = GeneratedImages(model, 1, "mine", steps=2, batch_size=size)
    assert (len(images), images.title) == (1, "mine")
    assert images.chunk % size == 0
    assert images_module.CHUNK <= images.chunk < images_module.CHUNK + size
    assert GeneratedImages(model, 2).title == f"model {model.weights_hash}"
    with pytest.raises(UserError, match="at least 1, not 0"):
        GeneratedImages(model, 0)
