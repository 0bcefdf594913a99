"""How sources are opened: grey or colour, images or moments, supported channels, and sizes."""

import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data import open_dataset
from ddpm.diffusion.config import DiffusionConfig
from ddpm.evaluation import opening
from ddpm.evaluation.distances import moments_of
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.image_sets import DatasetImages
from ddpm.evaluation.opening import open_candidate, open_images, open_reference
from ddpm.model import Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig


def untrained(channels: int) -> Model:
    """A model of 8x8 images that has learned nothing."""
    config = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)
    unet = UNet(config, (8, 8), in_channels=channels, out_channels=channels)
    return Model(unet, DiffusionConfig(timesteps=8).build(), image_shape=(channels, 8, 8))


def pixels(count: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


def test_open_reference_takes_a_partly_grey_set_as_colour(tmp_path):
    for number in range(100):
        mode = "RGB" if number % 3 == 1 else "L"
        Image.new(mode, (8, 8)).save(tmp_path / f"{number:03d}.png")
    assert open_reference(str(tmp_path), untrained(3)).shape == (3, 8, 8)
    assert open_images(str(tmp_path)).shape == (3, 8, 8)


def test_open_images_ignores_broken_files_in_a_grey_set(tmp_path):
    for number in range(5):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "5.png")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:-40])  # its beginning says colour
    assert open_images(str(tmp_path)).shape == (1, 8, 8)


def test_evaluate_uses_moments_stored_beside_images_for_fid(network, tmp_path):
    """OpenAI's reference batches are like this: some images, and the moments of the whole set."""
    some, whole = pixels(70, 3), pixels(200, 3, seed=1)
    np.savez(tmp_path / "whole.npz", arr_0=whole)
    moments = moments_of([network(open_images(str(tmp_path / "whole.npz"))[:])[0]])
    np.savez(tmp_path / "batch.npz", arr_0=some, mu=moments.mu, sigma=moments.sigma, mu_s=np.zeros(3))
    np.savez(tmp_path / "other.npz", arr_0=some, mu=np.zeros(7), sigma=np.eye(7))
    np.savez(tmp_path / "judged.npz", arr_0=pixels(80, 3, seed=2))
    assert isinstance(open_candidate(str(tmp_path / "batch.npz")), DatasetImages)

    def judge(reference):
        data = str(tmp_path / reference)
        judged, names = str(tmp_path / "judged.npz"), ["fid", "kid"]
        return evaluate(judged, data, metrics=names, features=network, progress=False)

    found, of_other, of_whole = judge("batch.npz"), judge("other.npz"), judge("whole.npz")
    assert found.value("kid") == of_other.value("kid") != of_whole.value("kid")
    assert found.value("frechet_distance") == pytest.approx(of_whole.value("frechet_distance"), rel=1e-4)
    assert of_other.value("frechet_distance") != pytest.approx(of_whole.value("frechet_distance"), rel=1e-2)
    assert found.settings["reference"].endswith("batch.npz (with precomputed statistics)")
    assert of_other.settings["reference"].endswith("other.npz")  # its moments are of another network


@pytest.mark.parametrize("channels", [2, 4])
def test_evaluate_refuses_unsupported_channels_before_sampling(network, tmp_path, channels):
    model = untrained(channels)
    np.savez(tmp_path / "real.npz", arr_0=pixels(80, channels))
    np.savez(tmp_path / "labelled.npz", arr_0=pixels(80, channels), arr_1=np.arange(80) % 2)
    real, options = str(tmp_path / "real.npz"), {"features": network, "num": 70, "steps": 2, "progress": False}
    drawn = []
    model.network.register_forward_hook(lambda *_: drawn.append(1))
    for names in (None, ["kid"], ["drift"], ["levels", "memorisation"]):
        with pytest.raises(UserError, match=f"needs grey or colour images, .* {channels} channels: take levels, nll"):
            evaluate(model, real, test=real, metrics=names, **options)
    labelled = str(tmp_path / "labelled.npz")
    with pytest.raises(UserError, match="cas needs grey or colour"):
        evaluate(labelled, labelled, test=labelled, metrics=["cas"], features=network)
    assert not drawn
    report = evaluate(model, real, test=real, metrics=["levels"], **options)
    assert 0 < report.value("levels") < 1


@pytest.fixture
def photographs(tmp_path):
    """A folder of 24 grey images of several sizes."""
    random, folder = np.random.default_rng(0), tmp_path / "photographs"
    folder.mkdir()
    for number in range(24):
        Image.fromarray(random.integers(0, 255, (20 + number % 9, 30), dtype=np.uint8)).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture
def samples(tmp_path):
    """24 grey images of 12x8."""
    np.savez(tmp_path / "samples.npz", arr_0=np.random.default_rng(1).integers(0, 256, (24, 12, 8, 1), dtype=np.uint8))
    return str(tmp_path / "samples.npz")


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_evaluate_fits_photographs_of_many_sizes_to_the_samples(network, photographs, samples, fit):
    """As a data set of the same configuration would be read."""
    options = {"features": network, "fit": fit, "test": photographs, "progress": False}  # the held-out images, too
    report = evaluate(samples, photographs, metrics=["kid"], **options)
    assert report.settings["reference_fit"] == f"{fit} to 12×8"
    assert f"{fit} to 12×8" in report.table()
    expected, _ = open_dataset(photographs, image_size=(12, 8), channels=1, fit=fit).batch(range(24))
    assert torch.equal(open_reference(photographs, open_images(samples), fit)[:], expected)


def test_evaluate_without_fit_refuses_other_sizes_and_names_the_flag(network, photographs, samples, tmp_path):
    with pytest.raises(UserError, match=r"holds images of 9 sizes: .*--fit crop or --fit pad"):
        evaluate(samples, photographs, metrics=["kid"], features=network)
    with pytest.raises(UserError, match=r"12×8 grey images and digits 28×28 grey ones: .*--fit crop or --fit pad"):
        evaluate(samples, "digits", metrics=["kid"], features=network)
    with pytest.raises(UserError, match="--fit takes crop or pad, not 'stretch'"):
        evaluate(samples, "digits", metrics=["kid"], features=network, fit="stretch")
    np.savez(tmp_path / "colour.npz", arr_0=pixels(9, 3))
    with pytest.raises(UserError, match="holds grey images, and the images to evaluate are colour"):
        evaluate(str(tmp_path / "colour.npz"), photographs, metrics=["kid"], features=network, fit="crop")


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_the_other_kind_are_taken_as_soon_as_the_given_command_converted_them(tmp_path, channels):
    """A scan in colour of something grey, or the other way round."""
    (tmp_path / "scans").mkdir()
    random = np.random.default_rng(0)
    shape = (8, 8, 3) if channels == 1 else (8, 8)
    Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "scans" / "a.png")
    with pytest.raises(UserError, match=r"convert each, e\.g\. with ") as said:
        open_reference(str(tmp_path / "scans"), untrained(channels))
    command = str(said.value).partition("with ")[2]
    command = command.replace("IN", "scans/a.png").replace("OUT.png", "scans/a.png")
    subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), cwd=tmp_path, check=True)
    assert len(open_reference(str(tmp_path / "scans"), untrained(channels))) == 1


def test_open_reference_fit_replaces_that_of_the_models_training_data(photographs):
    model = untrained(1)
    model.provenance = {"config": {"data": {"source": "elsewhere", "fit": "pad"}}}
    padded, cropped = open_reference(photographs, model), open_reference(photographs, model, "crop")
    assert torch.equal(open_reference(photographs, model, "pad")[:], padded[:])
    assert not torch.equal(padded[:], cropped[:])


def test_open_images_opens_the_source_once(samples, monkeypatch):
    opened, find = [], opening.find_stored
    monkeypatch.setattr(opening, "find_stored", lambda source: opened.append(source) or find(source))
    monkeypatch.setattr("ddpm.data.sources.find_stored", None)  # not through another way either
    open_images(samples)
    assert opened == [samples]


def test_open_images_says_what_it_leaves_out(tmp_path, capsys):
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 255)).save(tmp_path / f"{number}.png")
    open_images(str(tmp_path))
    assert capsys.readouterr().out == ""
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert len(open_images(str(tmp_path))) == 2
    assert "1.png" in capsys.readouterr().out
