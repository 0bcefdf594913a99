"""A file says how it was made, and its command makes it again."""

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import tqdm
from PIL import Image

import ddpm
from ddpm.cli import run
from ddpm.common.errors import UserError
from ddpm.common.pixels import made_by, read_origin, save_grid


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    return tmp_path


COMMANDS = {
    "samples.png": "sample digits --num 2 --steps 2 --labels 3,4 --seed 5 --batch-size 2",
    "samples.npz": "sample digits --num 2 --steps 2 --batch-size 2 --out samples.npz",
    "folder/000001.png": "sample digits --num 2 --steps 2 --batch-size 2 --out folder",
    "restored.png": "restore digits picture.png --task inpaint --mask half --steps 2 --samples 2 --batch-size 2",
    "edited.png": "edit digits picture.png --strength 0.1 --steps 10 --batch-size 1 --out edited.png",
    "interpolation.png": "interpolate digits picture.png picture.png --num 2 --steps 4 --batch-size 2",
    "trace.gif": "trace digits --steps 2",
    "strip.png": "trace digits --steps 2 --out strip.png",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_in_a_file_makes_the_same_bytes(folder, capsys, name):
    assert run(shlex.split(COMMANDS[name])) == 0
    made = (folder / name).read_bytes()
    capsys.readouterr()
    assert run(["info", name]) == 0
    said = capsys.readouterr().out
    for path in [*folder.glob("*.*"), *folder.glob("folder/*")]:
        if path.name != "picture.png":
            path.unlink()
    (command,) = (line.removeprefix("command: ") for line in said.splitlines() if line.startswith("command: "))
    assert run(shlex.split(command)[1:]) == 0
    assert (folder / name).read_bytes() == made
    assert "weights: " in said
    assert ("index: 1" in said) == name.startswith("folder")


def test_the_options_are_said(folder):
    run(shlex.split(COMMANDS["samples.png"]))
    origin = read_origin(folder / "samples.png")
    assert origin["options"]["labels"] == [3, 4]
    assert origin["options"]["sampler"] == "dpm++sde"
    assert origin["images"] == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_said_without_metadata(folder, name):
    assert run([*shlex.split(COMMANDS[name]), "--no-metadata"]) == 0
    with pytest.raises(UserError, match="does not say how it was made"):
        read_origin(folder / name)


def test_the_pixels_are_the_same_with_and_without(tmp_path):
    images = torch.rand(2, 1, 4, 4)
    plain = save_grid(images, tmp_path / "plain.png")
    with made_by({"command": "ddpm é"}):
        told = save_grid(images, tmp_path / "told.png")
    assert np.array_equal(Image.open(plain), Image.open(told))
    assert read_origin(told) == {"command": "ddpm é"}


@pytest.mark.parametrize("content", [b"", b"no image", b"PK\x05\x06" + bytes(18)])
def test_another_file_is_refused_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "other.png"
    path.write_bytes(content)
    assert run(["info", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_file_is_refused_with_what_is_read(folder, capsys, name):
    assert run(["info", name]) == 2
    assert capsys.readouterr().err == f"ddpm: error: {name} is no file: give a .png, a .gif or an .npz of ddpm\n"


def test_a_model_is_told_by_its_card(folder, capsys):
    shutil.copytree(ddpm.model.BUNDLED["digits"], folder / "run" / "model")
    (folder / "run" / "metrics.jsonl").touch()
    cards = {
        "digits": ddpm.model.BUNDLED["digits"] / "README.md",
        "run": Path("run/model/README.md"),
        "run/model": Path("run/model/README.md"),
    }
    for name, card in cards.items():
        assert card.is_file()
        assert run(["info", name]) == 2
        expected = f"ddpm: error: {name} is a model: {card} says what it is and how it was made\n"
        assert capsys.readouterr().err == expected
    (folder / "run" / "model" / "README.md").unlink()
    assert run(["info", "run"]) == 2
    assert "give a .png" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "nonsense", '"text"'])
def test_a_text_of_somebody_else_is_refused(tmp_path, capsys, text):
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.comment = text.encode()
    assert run(["info", str(tmp_path / "other.npz")]) == 2
    assert "does not say how it was made" in capsys.readouterr().err


def test_a_hostile_text_does_not_reach_the_terminal(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.comment = json.dumps({"command": "\x1b]0;title\x07", "\x1b[2J": "\x1b[2J"}).encode()
    assert run(["info", str(tmp_path / "other.npz")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_every_step_of_every_batch_is_counted_on_a_terminal(folder, monkeypatch):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *words, **options):
            super().__init__(*words, **{**options, "delay": 0, "disable": False})
            bars.append(self)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    assert run(shlex.split("sample digits --num 3 --steps 4 --batch-size 2")) == 0
    assert run(shlex.split("trace digits --steps 3")) == 0
    assert [(bar.n, bar.total) for bar in bars] == [(8, 8), (3, 3)]
