"""`ddpm restore`: its output and its error messages."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import cli
from ddpm.cli.restore import print_rounding
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.restoration.job import RestoreSettings
from ddpm.restoration.tasks import Task


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """Folder of a tiny untrained U-Net; its quality does not matter here."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[], groups=4)
    network = UNet(config, image_size=(12, 12), in_channels=1, out_channels=1, num_classes=None)
    model = Model(network, GaussianDiffusion(NoiseSchedule(make_betas("linear", 50))), image_shape=(1, 12, 12))
    folder = tmp_path_factory.mktemp("model")
    model.save(folder / "model")
    return folder


def test_restore_prints_psnr_and_ssim(saved_model, pictures, tmp_path, capsys):
    arguments = ["restore", saved_model, pictures / "0.png", "--task", "superresolve", "--scale", "5", "--degrade"]
    arguments += [
        "--noise",
        "0.05",
        "--samples",
        "2",
        "--steps",
        "5",
        "--out",
        tmp_path / "x.png",
        "--option",
        "eta=0.5",
    ]
    assert cli.run([str(word) for word in arguments]) == 0
    printed = capsys.readouterr().out
    assert "12×12 is not divisible by 5" in printed
    for word in ("PSNR", "SSIM", "input", "pseudo-inverse", "result"):
        assert word in printed
    assert (tmp_path / "x_compare.png").is_file()


@pytest.mark.parametrize("source", ["", "0.png"])
def test_restore_prints_a_note_if_it_raises_the_noise(saved_model, pictures, tmp_path, capsys, source):
    def printed(noise):
        words = ["restore", saved_model, pictures / source, "--task", "deblur", "--kernel", "box:3", "--steps", "2"]
        words += ["--noise", noise, "--overwrite", "--out", tmp_path / (source or "out")]
        assert cli.run([str(word) for word in words]) == 0
        return capsys.readouterr().out

    assert "note: σ is taken as 0.0011" in printed("0")
    assert "taken as" not in printed("0.0100004")


@pytest.mark.parametrize("sigmas", [[0.0, 0.0011], [0.0011, 0.0]])
def test_one_picture_of_a_folder_with_raised_noise_is_worth_the_note(capsys, sigmas):
    """How much a blur amplifies depends on the size, and pictures of a folder differ in it."""
    print_rounding([{"sigma": sigma, "error": ""} for sigma in sigmas], RestoreSettings(Task("deblur", kernel="box:3")))
    assert "note: σ is taken as 0.0011" in capsys.readouterr().out


def test_restore_folder_prints_what_it_leaves_out(saved_model, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"no")
    arguments = ["restore", saved_model, pictures, "--task", "denoise", "--noise", "0.1", "--steps", "5"]
    assert cli.run([str(word) for word in [*arguments, "--out", tmp_path / "out"]]) == 0
    printed = capsys.readouterr().out
    assert "left out: broken" in printed
    assert "6 of 7 pictures" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "sharpen"], "no task named 'sharpen'"),
        (["--task", "denoise", "--method", "drm"], "did you mean ddrm?"),
        (["--task", "denoise", "--noise", "-1"], "at least 0"),
        (["--task", "denoise", "--noise", "25"], "for 25 of 255 levels give 0.098"),
        (["--task", "denoise", "--noise", "nan"], "takes numbers"),
        (["--task", "denoise", "--noise", "much"], "takes numbers"),
        (["--task", "denoise"], "needs --noise"),
        (["--task", "superresolve", "--degrade", "--method", "repaint"], "only inpaints"),
        (["--task", "inpaint"], "needs --mask"),
        (["--task", "inpaint", "--mask", "nowhere.png"], "no mask nowhere.png"),
        (["--task", "inpaint", "--mask", "random:2"], "fraction of pixels lost"),
        (
            ["--task", "inpaint", "--mask", "half", "--method", "repaint", "--noise", "0.1"],
            "takes the known pixels as exact",
        ),
        (["--task", "deblur"], "needs --kernel"),
        (["--task", "deblur", "--kernel", "box:99"], "larger than the image"),
        (["--task", "deblur", "--kernel", "gaussian"], "gaussian:SIGMA"),
        (["--task", "deblur", "--kernel", "gaussian:1e9"], "up to 167 pixels"),
        (["--task", "deblur", "--kernel", "box:2.5"], "whole number of pixels"),
        (["--task", "deblur", "--kernel", "gaussian:wide"], "takes numbers"),
        (["--task", "superresolve", "--scale", "1"], "whole number"),
        (["--task", "superresolve", "--scale", "0"], "whole number"),
        (["--task", "superresolve", "--filter", "sharp", "--degrade"], "average and bicubic"),
        (["--task", "colorize", "--degrade"], "colour"),
        (["--task", "denoise", "--noise", "auto", "--degrade"], "give --noise a number"),
        (["--task", "denoise", "--option", "zeta=1"], "no option 'zeta'"),
        (["--task", "denoise", "--option", "eta=nan"], "takes numbers"),
        (["--task", "denoise", "--noise", "0.1", "--option", "eta=5"], "eta must be between 0 and 1"),
        (["--task", "denoise", "--method", "ddnm", "--option", "travel_length=2.5"], "takes whole numbers"),
        (["--task", "denoise", "--noise", "0.1", "--samples", "0"], "at least 1"),
        (["--task", "denoise", "--noise", "0.1", "--batch-size", "0"], "at least 1"),
        (["--task", "denoise", "--noise", "0.1", "--steps", "0"], "cannot take 0 steps"),
        (["--task", "denoise", "--noise", "0.1", "--out", "x.jpg"], "end in .png"),
    ],
)
def test_restore_refuses_bad_options_in_one_line(saved_model, pictures, tmp_path, capsys, arguments, words):
    rest = [] if "--out" in arguments else ["--out", str(tmp_path / "x.png")]
    assert cli.run(["restore", str(saved_model), str(pictures / "0.png"), *arguments, *rest]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words in message


def test_restore_refuses_empty_full_and_misfitting_masks(saved_model, pictures, tmp_path, capsys):
    for name, value, words in [("empty", 0, "is empty"), ("full", 255, "no pixel known")]:
        Image.fromarray(np.full((12, 12), value, np.uint8)).save(tmp_path / f"{name}.png")
        arguments = [
            "restore",
            saved_model,
            pictures / "0.png",
            "--task",
            "inpaint",
            "--mask",
            tmp_path / f"{name}.png",
        ]
        assert cli.run([str(word) for word in [*arguments, "--out", tmp_path / "x.png"]]) == 2
        assert words in capsys.readouterr().err
    Image.fromarray(np.full((9, 12), 255, np.uint8)).save(tmp_path / "other.png")
    arguments = ["restore", saved_model, pictures / "0.png", "--task", "inpaint", "--mask", tmp_path / "other.png"]
    assert cli.run([str(word) for word in [*arguments, "--out", tmp_path / "x.png"]]) == 2
    assert "mask is 9×12" in capsys.readouterr().err
    assert cli.run(["restore", str(saved_model), str(tmp_path / "no.png"), "--task", "inpaint", "--mask", "half"]) == 2
    assert "no picture or folder" in capsys.readouterr().err
