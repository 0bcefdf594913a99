"""`ddpm edit` and `ddpm interpolate`: files, output and error messages."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import cli
from ddpm.data import open_dataset
from ddpm.data.images import read_image
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet

QUICK = ["--steps", "5", "--evaluations", "4", "--batch-size", "2"]


def save_model(folder, num_classes=None, provenance=None):
    """Save a tiny untrained U-Net; its quality does not matter here."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[], groups=4)
    rows = num_classes and num_classes + 1
    network = UNet(config, image_size=(12, 12), in_channels=1, out_channels=1, num_classes=rows)
    names = num_classes and [str(i) for i in range(num_classes)]
    process = GaussianDiffusion(NoiseSchedule(make_betas("linear", 50)))
    known = {"class_names": names, "null_label": num_classes, "provenance": provenance}
    Model(network, process, image_shape=(1, 12, 12), **known).save(folder / "model")
    return str(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("classes"), num_classes=3)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (12, 12), np.uint8)).save(folder / "a.png")
    Image.fromarray(random.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / "b.png")  # fitted to the model
    return folder


def run(capsys, *arguments):
    code = cli.run([str(word) for word in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_edit_writes_one_picture(plain, pictures, tmp_path, capsys):
    out = tmp_path / "x.png"
    code, printed, _ = run(
        capsys, "edit", plain, pictures / "a.png", "--strength", "0.3", "--steps", "10", "--out", out
    )
    assert code == 0
    assert "PSNR" in printed
    assert "SSIM" in printed
    assert read_image(out, channels=1).shape == (1, 12, 12)
    code, _, error = run(capsys, "edit", plain, pictures / "a.png", "--strength", "0.3", "--out", out)
    assert code == 2
    assert "--overwrite" in error


def test_edit_with_strength_zero_keeps_the_picture(plain, pictures, tmp_path, capsys):
    run(capsys, "edit", plain, pictures / "a.png", "--strength", "0", "--out", tmp_path / "x.png")
    assert torch.equal(read_image(tmp_path / "x.png", 1), read_image(pictures / "a.png", 1))


@pytest.mark.parametrize("preprocessing", [{"fit": "pad", "background": 0}, {"background": [255, 0, 0]}, {}])
def test_edit_resizes_pictures_as_in_training(pictures, tmp_path, capsys, preprocessing):
    section = {"source": "elsewhere", "image_size": 12, **preprocessing, "a future field": 1}
    padded = save_model(tmp_path / "run", provenance={"config": {"data": section}})
    for path in pictures.iterdir():
        path.unlink()
    Image.new("LA", (30, 20), (200, 100)).save(pictures / "a.png")
    trained = open_dataset(str(pictures), image_size=12, channels=1, **preprocessing).batch([0])[0]
    run(capsys, "edit", padded, pictures, "--strength", "0", "--out", tmp_path / "all")
    run(capsys, "edit", padded, pictures / "a.png", "--strength", "0", "--out", tmp_path / "one.png")
    for path in (tmp_path / "all" / "a.png", tmp_path / "one.png"):
        assert torch.equal(read_image(path, 1), trained[0])


def test_edit_refuses_unknown_preprocessing_in_one_line(pictures, tmp_path, capsys):
    for section in ({"fit": "stretch"}, {"background": "blue"}):
        odd = save_model(tmp_path / "run", provenance={"config": {"data": section}})
        code, _, error = run(capsys, "edit", odd, pictures / "a.png", "--strength", "0", "--out", tmp_path / "x.png")
        assert (code, error.count("\n")) == (2, 1)


def test_edit_writes_a_folder(plain, pictures, tmp_path, capsys):
    code, printed, _ = run(
        capsys, "edit", plain, pictures, "--strength", "0.5", "--steps", "6", "--out", tmp_path / "out"
    )
    assert code == 0
    assert "a: PSNR" in printed
    assert "b: PSNR" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_edit_folder_with_bad_files_and_equal_names(plain, pictures, tmp_path, capsys):
    (pictures / "bad.png").write_text("no image")
    Image.open(pictures / "a.png").save(pictures / "a.bmp")
    arguments = ["edit", plain, pictures, "--strength", "0", "--out", tmp_path / "out"]
    code, printed, _ = run(capsys, *arguments)
    assert code == 0
    assert printed.startswith(f"left out: {pictures / 'bad.png'} cannot be used as an image")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bmp.png", "a.png.png", "b.png"]
    for path in pictures.iterdir():
        path.write_text("no image")
    code, _, error = run(capsys, *arguments, "--overwrite")
    assert code == 2
    assert "no picture in" in error


@pytest.mark.parametrize(("mode", "head"), [("--curve", "strength"), ("--invert", "depth")])
def test_edit_writes_plots_and_tables(plain, pictures, tmp_path, capsys, mode, head):
    pytest.importorskip("matplotlib")
    out = tmp_path / "figure.png"
    code, printed, _ = run(capsys, "edit", plain, pictures, mode, *QUICK, "--out", out)
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].startswith(head)
    assert len(lines) == (11 if mode == "--curve" else 10) + 2  # a header, and the file's name
    assert min(read_image(out).shape[1:]) > 300


@pytest.mark.parametrize("mode", ["--curve", "--invert"])
def test_edit_notices_a_missing_matplotlib_first(pictures, monkeypatch, capsys, mode):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = run(capsys, "edit", "not looked at yet", pictures / "a.png", mode)
    assert code == 2
    assert "pip install 'ddpm-kit[eval]'" in error


def test_edit_translates_between_classes(classes, pictures, tmp_path, capsys):
    out = tmp_path / "x.png"
    arguments = [
        "edit",
        classes,
        pictures / "a.png",
        "--evaluations",
        "4",
        "--batch-size",
        "1",
        "--labels",
        "0",
        "--out",
        out,
    ]
    assert run(capsys, *arguments, "--to", "2")[0] == 0
    assert read_image(out, 1).shape == (1, 12, 12)
    code, _, error = run(capsys, *arguments, "--to", "9", "--overwrite")
    assert code == 2
    assert "no class '9'" in error


def test_interpolate_writes_a_grid(plain, pictures, tmp_path, capsys):
    out = tmp_path / "x.png"
    code, printed, _ = run(
        capsys,
        "interpolate",
        plain,
        pictures / "a.png",
        pictures / "b.png",
        "--num",
        "5",
        "--depths",
        "0,0.5",
        "--steps",
        "4",
        "--out",
        out,
    )
    assert code == 0
    assert printed.strip() == str(out)
    assert read_image(out, 1).shape == (1, 2 * 14 + 2, 7 * 14 + 2)  # two depths; A, five images, B


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit", "MODEL", "a.png"], "say what to do"),
        (["edit", "MODEL", "a.png", "--strength", "0.2", "--curve"], "say what to do"),
        (["edit", "MODEL", "a.png", "--strength", "2"], "strength must be"),
        (["edit", "MODEL", "a.png", "--strength", "nan"], "strength must be"),
        (["edit", "MODEL", "a.png", "--strength", "0.2", "--sampler", "dimm"], "did you mean"),
        (["edit", "MODEL", "no.png", "--strength", "0.2"], "no picture or folder"),
        (["edit", "MODEL", "a.png", "--invert", "--order", "3"], "--order takes"),
        (["edit", "MODEL", "a.png", "--invert", "--evaluations", "2"], "at least 4 network evaluations"),
        (["edit", "MODEL", "a.png", "--to", "1"], "without classes"),
        (["edit", "MODEL", "a.png", "--strength", "0.2", "--out", "x.jpg"], "should end in .png"),
        (["interpolate", "MODEL", "a.png", "b.png", "--num", "1"], "at least 2"),
        (["interpolate", "MODEL", "a.png", "b.png", "--depths", "deep"], "--depths takes numbers"),
        (["interpolate", "MODEL", "a.png", "b.png", "--depths", "1.5"], "depth must be"),
        (["interpolate", "MODEL", "a.png", "."], "cannot be read"),
        (["edit", "MODEL", "a.png", "--strength", "0.2", "--batch-size", "0"], "at least 1"),
    ],
)
def test_edit_and_interpolate_refuse_bad_input_in_one_line(plain, pictures, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(pictures)
    code, _, error = run(capsys, *[plain if word == "MODEL" else word for word in arguments])
    assert code == 2
    assert error.count("\n") == 1
    assert words in error


def test_edit_folder_names_what_it_leaves_out(plain, pictures, tmp_path, capsys):
    (pictures / "._a.png").write_bytes(bytes(50))
    (pictures / "photo.heic").write_bytes(bytes(50))
    (pictures / "more").mkdir()
    Image.new("L", (12, 12)).save(pictures / "more" / "c.png")
    Image.new("L", (90, 14)).save(pictures / "a_compare.png")
    code, printed, _ = run(capsys, "edit", plain, pictures, "--strength", "0", "--out", tmp_path / "out")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    left_out = [line for line in printed.splitlines() if line.startswith("left out")]
    assert len(left_out) == 3
    for name in ("photo.heic", "more", "a_compare.png"):
        assert any(f"{pictures / name}:" in line for line in left_out), name
