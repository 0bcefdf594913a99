"""What the two sides are taken for: grey or colour, images or moments, and which channels can be judged at all."""

import numpy as np
import pytest
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.evaluation.distances import moments_of
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.images import DatasetImages
from ddpm.evaluation.sources import open_images, open_judged, open_reference
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


def test_a_set_with_some_grey_pictures_is_one_of_colour(tmp_path):
    """Whichever comes first."""
    for number in range(100):
        mode = "RGB" if number % 3 == 1 else "L"
        Image.new(mode, (8, 8)).save(tmp_path / f"{number:03d}.png")
    assert open_reference(str(tmp_path), untrained(3)).shape == (3, 8, 8)
    assert open_images(str(tmp_path)).shape == (3, 8, 8)


def test_a_grey_set_is_grey_whatever_is_broken_in_it(tmp_path):
    for number in range(5):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "5.png")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:-40])  # its beginning says colour
    assert open_images(str(tmp_path)).shape == (1, 8, 8)


def test_images_with_moments_beside_are_images(network, tmp_path):
    """As OpenAI's reference batches are: the moments, for the FID, are those of the whole set."""
    some, whole = pixels(70, 3), pixels(200, 3, seed=1)
    np.savez(tmp_path / "whole.npz", arr_0=whole)
    moments = moments_of([network(open_images(str(tmp_path / "whole.npz"))[:])[0]])
    np.savez(tmp_path / "batch.npz", arr_0=some, mu=moments.mu, sigma=moments.sigma, mu_s=np.zeros(3))
    np.savez(tmp_path / "other.npz", arr_0=some, mu=np.zeros(7), sigma=np.eye(7))
    np.savez(tmp_path / "judged.npz", arr_0=pixels(80, 3, seed=2))
    assert isinstance(open_judged(str(tmp_path / "batch.npz")), DatasetImages)

    def judge(reference):
        data = str(tmp_path / reference)
        judged, names = str(tmp_path / "judged.npz"), ["fid", "kid"]
        return evaluate(judged, data, metrics=names, features=network, progress=False)

    found, of_other, of_whole = judge("batch.npz"), judge("other.npz"), judge("whole.npz")
    assert found.value("kid") == of_other.value("kid") != of_whole.value("kid")
    assert found.value("frechet_distance") == pytest.approx(of_whole.value("frechet_distance"), rel=1e-4)
    assert of_other.value("frechet_distance") != pytest.approx(of_whole.value("frechet_distance"), rel=1e-2)
    assert found.settings["reference"].endswith("batch.npz (with ready moments)")
    assert of_other.settings["reference"].endswith("other.npz")  # its moments are of another network


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_features_do_not_know_are_refused_before_anything_is_drawn(network, tmp_path, channels):
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
