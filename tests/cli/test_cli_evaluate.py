"""`ddpm evaluate`: what is there is kept."""

import numpy as np
import pytest

from ddpm.cli import run


@pytest.mark.parametrize("there", ["results.json", "results.png"])
def test_a_sweep_leaves_what_is_there_alone(tmp_path, capsys, there):
    """It is said at once, and not after hours of drawing."""
    (tmp_path / there).write_text("mine")
    words = ["evaluate", "digits", "--data", "digits", "--sweep", "--out", str(tmp_path / "results.json")]
    assert run(words) == 2
    assert f"{there} exists: give another --out, or --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize(
    ("metric", "options", "there"),
    [
        ("memorisation", [], "results-closest-pairs.png"),
        ("nll", [], "results-likelihood.png"),
        ("memorisation", ["--sweep", "--sampler", "ddim", "--steps", "5,9"], "results-ddim-9-closest-pairs.png"),
    ],
)
def test_a_picture_that_is_there_is_left_alone(tmp_path, capsys, metric, options, there):
    (tmp_path / there).write_text("mine")
    words = ["evaluate", "digits", "--data", "digits", "--metrics", metric, *options]
    assert run([*words, "--out", str(tmp_path / "results.json")]) == 2
    assert f"{there} exists: give another --out, or --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [there]


@pytest.mark.parametrize("flag", ["--seed 5", "--steps 3", "--sampler ddim", "--guidance 2", "--num 4"])
def test_a_flag_of_sampling_is_refused_for_images(tmp_path, monkeypatch, capsys, flag):
    """Nothing is drawn, so a result that names the seed, or is thought to, would mislead."""
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", arr_0=np.zeros((4, 28, 28, 1), np.uint8))
    assert run(["evaluate", "images.npz", "--data", "images.npz", "--metrics", "levels", *flag.split()]) == 2
    assert "are for a model, and these are images" in capsys.readouterr().err
