"""What is behind the Restore tab."""

import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.app import restore as restoring
from ddpm.app.uploads import read_fitted
from ddpm.cli import run as command_line
from ddpm.common.errors import UserError
from ddpm.restoration import Restored


def last(iterator):
    *_, answer = iterator
    return answer


@pytest.mark.parametrize("kind", restoring.KINDS[:-1])
@pytest.mark.parametrize("clean", [True, False])
def test_every_damage_is_restored(served_model, uploads, kind, clean):
    damage = restoring.Damage(kind, noise=0.1)
    answer = last(restoring.restore_upload(served_model, str(uploads / "good.png"), None, damage, clean=clean, steps=2))
    pictures = answer.pictures()
    assert pictures["mean"].size == pictures["one draw"].size == pictures["differences"].size == (16, 16) or not clean
    assert answer.report().startswith("Done: 4 draws.")
    assert ("PSNR" in answer.report()) == clean
    assert ("original" in pictures) == clean


@pytest.mark.parametrize("clean", [True, False])
def test_the_rounding_of_a_blurred_upload_is_taken_for_noise(served_model, uploads, clean):
    blur = restoring.Damage(restoring.BLUR, blur=1.5)
    answer = last(restoring.restore_upload(served_model, str(uploads / "good.png"), None, blur, clean=clean, steps=2))
    assert ("σ is taken as 0.0011" in answer.report()) != clean


def test_only_the_painted_part_changes(served_model, uploads):
    lost = torch.arange(16).expand(16, 16) >= 8
    picture = str(uploads / "good.png")
    answer = last(restoring.restore_upload(served_model, picture, lost, restoring.Damage(), steps=3))
    before, after = (np.asarray(answer.pictures()[view]).astype(int) for view in ("before", "mean"))
    assert np.abs(before[:, :8] - after[:, :8]).max() <= 1
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 20
    assert answer.spread[:, :8].max() <= answer.spread[:, 8:].min() + 0.01


def test_no_uncertainty_is_black_and_much_is_light():
    """On a fixed scale: a map that is scaled to its own maximum would glow where nothing is uncertain."""
    assert np.asarray(restoring.heat(torch.full((4, 4), 1e-4))).max() < 8
    assert np.asarray(restoring.heat(torch.full((4, 4), 0.25))).min() > 150
    assert np.array_equal(restoring.heat(torch.full((4, 4), 0.25)), restoring.heat(torch.full((4, 4), 0.4)))


@pytest.mark.parametrize("kind", restoring.USUAL_NOISE)
def test_a_damage_begins_with_something_to_restore(kind):
    assert restoring.USUAL_NOISE[kind] > 0


def test_noise_of_nothing_is_said_so(served_model, uploads):
    with pytest.raises(UserError, match="nothing to restore"):
        restoring.restore_upload(served_model, str(uploads / "good.png"), None, restoring.Damage(restoring.NOISE))


@pytest.mark.parametrize("kind", [restoring.PAINTED, *restoring.KINDS[:-1]])
def test_the_command_and_the_program_restore_the_same(served_model, uploads, tmp_path, monkeypatch, kind):
    served_model.save(tmp_path / "a model")
    monkeypatch.chdir(tmp_path)
    damage = restoring.Damage(kind, noise=0.1, scale=2)
    lost = torch.arange(16).expand(16, 16) >= 8 if kind == restoring.PAINTED else None
    source = str(uploads / "good.png")
    answer = last(restoring.restore_upload(served_model, source, lost, damage, steps=3, draws=2, seed=4))
    with zipfile.ZipFile(answer.save(tmp_path / "restored.zip", read_fitted(source, (1, 16, 16)), lost)) as archive:
        archive.extractall(tmp_path)
    options = {"method": "ddnm", "noise": 0.1, "samples": 2, "steps": 3, "seed": 4, "batch_size": 2}
    words = shlex.split(restoring.as_command("a model", damage, options, True).replace("\\\n", ""))
    assert command_line(words[1:]) == 0
    restored = np.asarray(Image.open("restored.png"))
    assert np.array_equal(restored, Image.open("mean.png"))
    for name in ("restored.png", "restored_compare.png", "restored_samples.png", "restored_std.png"):
        Path(name).unlink()
    exec(restoring.as_python("a model", damage, options, True), {})
    assert np.array_equal(restored, Image.open("restored.png"))


def test_an_upload_is_restored_as_its_class(strict_model, uploads):
    def restored(label):
        picture, damage = str(uploads / "good.png"), restoring.Damage(restoring.RANDOM)
        events = restoring.restore_upload(strict_model, picture, None, damage, steps=3, label=label)
        return np.asarray(last(events).pictures()["mean"])

    assert not np.array_equal(restored("class 0"), restored("class 1"))
    with pytest.raises(UserError, match="needs labels"):
        restored("no class")


def test_what_is_left_is_judged_as_it_is_seen():
    """Noise leaves [-1, 1], and no picture does."""
    white = torch.ones(1, 16, 16)
    answer = restoring.Answer(3 * white, Restored(torch.zeros(1, 2, 1, 16, 16)), white)
    assert "before inf dB: worse than what was given." in answer.report()
    small = restoring.Answer(-torch.ones(1, 8, 8), Restored(torch.zeros(1, 2, 1, 16, 16)), white)
    assert "mean 6.0 dB, before 0.0 dB" in small.report()  # of ½ and 1 from white, in large pixels
    better = restoring.Answer(torch.zeros(1, 16, 16), Restored(white.expand(1, 2, 1, 16, 16)), 0.9 * white)
    assert "worse" not in better.report()


def test_nothing_painted_is_said_so(served_model, uploads):
    with pytest.raises(UserError, match="no pixels are marked"):
        restoring.restore_upload(served_model, str(uploads / "good.png"), None, restoring.Damage())


def test_colour_is_offered_only_where_there_is_some(served_model):
    assert restoring.GREY not in restoring.damages(served_model)
