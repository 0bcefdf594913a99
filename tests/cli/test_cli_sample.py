"""`ddpm sample` as a command."""

import json

import pytest
from tiny import tiny_model

from ddpm.cli import run
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model


@pytest.mark.parametrize(("timesteps", "steps"), [(8, 8), (50, 20)])
def test_sample_takes_20_steps_or_all_timesteps_if_there_are_fewer(model, tmp_path, timesteps, steps):
    process = GaussianDiffusion(NoiseSchedule(make_betas("linear", timesteps, 1e-3, 0.2)))
    Model(model.network, process, image_shape=model.image_shape).save(tmp_path / "model")
    assert run(["sample", str(tmp_path / "model"), "--num", "2", "--out", str(tmp_path / "drawn")]) == 0
    assert json.loads((tmp_path / "drawn" / "settings.json").read_text())["steps"] == steps


def test_a_folder_with_a_guidance_interval_is_continued(tmp_path):
    """The interval in the folder's settings is recognised as the one that is asked for."""
    tiny_model(classes=2).save(tmp_path / "model")
    drawn = tmp_path / "drawn"
    command = ["sample", str(tmp_path / "model"), "--guidance", "2", "--guidance-interval", "0.3", "5"]
    command += ["--out", str(drawn), "--steps", "2", "--num", "2"]
    assert run(command) == 0
    assert json.loads((drawn / "settings.json").read_text())["guidance_interval"] == [0.3, 5.0]
    second = sorted(drawn.glob("*.png"))[1]
    image = second.read_bytes()
    second.unlink()
    assert run(command) == 0
    assert second.read_bytes() == image


@pytest.mark.parametrize("rescale", ["-0.1", "1.5", "2"])
def test_sample_refuses_a_guidance_rescale_outside_0_to_1(capsys, rescale):
    assert run(["sample", "not looked at yet", "--guidance-rescale", rescale]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm: error: ")
    assert "--guidance-rescale" in error
