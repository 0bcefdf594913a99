"""Every path that a user can write expands `~`, once, on the command line and from Python."""

import typing
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import ddpm
from ddpm.cli import app, run
from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.data import open_dataset
from ddpm.training import load_config, train

TINY = [
    *("--network.channels", "8"),
    *("--network.groups", "4"),
    *("--network.channel_mult", "[1, 2]"),
    *("--network.blocks", "1"),
    *("--network.attention", "[]"),
    *("--training.batch_size", "4"),
    *("--training.steps", "1"),
    *("--training.preview_every", "0"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory with a model, an image, images by class and a mask; the working directory lies elsewhere."""
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home / "photos" / "a", home / "photos" / "b", work):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DDPM_CACHE", "~/cache")
    monkeypatch.delenv("DDPM_DATA", raising=False)
    monkeypatch.chdir(work)
    random = np.random.default_rng(0)
    for index in range(8):
        pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(home / "photos" / "ab"[index % 2] / f"{index}.png")
    Image.fromarray(pixels).save(home / "x.png")
    mask = np.zeros((28, 28), np.uint8)
    mask[:14] = 255
    Image.fromarray(mask).save(home / "mask.png")
    overrides = {name.removeprefix("--"): value for name, value in zip(TINY[::2], TINY[1::2], strict=True)}
    config = load_config("digits", overrides | {"data.labels": "false"}).to_yaml()
    (home / "config.yaml").write_text(config.replace("source: digits", "source: ~/photos"))
    ddpm.load("digits").save("~/model")
    return home


COMMANDS = {
    "sample": ["sample", "~/model", "--num", "1", "--steps", "1", "--out=~/out.png"],
    "sample to an array": ["sample", "~/model", "--num", "1", "--steps", "1", "--out=~/out.npz"],
    "sample to a folder": ["sample", "~/model", "--num", "1", "--steps", "1", "--out=~/out"],
    "trace": ["trace", "~/model", "--forward=~/x.png", "--steps", "4", "--frames", "4", "--out=~/out.gif"],
    "restore": ["restore", "~/model", "~/x.png", "--task", "inpaint", "--mask=~/mask.png", "--steps", "2", "--degrade",
                "--out=~/out.png"],
    "restore a folder": ["restore", "~/model", "~/photos", "--task", "inpaint", "--mask", "half", "--steps", "1",
                         "--out=~/out"],
    "edit": ["edit", "~/model", "~/x.png", "--strength", "0.2", "--steps", "5", "--out=~/out.png"],
    "interpolate": ["interpolate", "~/model", "~/x.png", "~/x.png", "--num", "2", "--steps", "2", "--out=~/out.png"],
    "data": ["data", "~/photos", "--out=~/out.png"],
    "convert": ["convert", "~/model", "~/out"],
    "plot": ["plot", "schedule", "--out=~/out.png"],
    "evaluate": ["evaluate", "~/model", "--data=~/photos", "--features", "builtin", "--metrics", "kid", "--num", "8",
                 "--steps", "1", "--out=~/out.json"],
    "train": ["train", "digits", "--data=~/photos", *TINY, "--out=~/out"],
    "train from a model": ["train", "digits", "--data=~/photos", "--data.labels=true", "--init=~/model", "--out=~/out",
                           "--training.steps=1", "--training.batch-size=2", "--training.preview_every=0"],
    "train from a file": ["train", "~/config.yaml", "--out=~/out"],
    "plot of a model": ["plot", "compare", "one=~/model", "--columns", "1", "--steps", "1", "--out=~/out.png"],
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_commands_expand_the_home_directory(words, home, capsys):
    assert run(words) == 0, capsys.readouterr().err
    assert any(path.name.startswith("out") for path in home.iterdir())
    assert list(Path().iterdir()) == []


def test_train_does_not_replace_a_run_behind_a_tilde(home, capsys):
    assert run(["train", "digits", "--data=~/photos", *TINY, "--out=~/good"]) == 0
    weights = home / "good" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert run(["train", "digits", "--data=~/photos", *TINY, "--training.seed", "1", "--out=~/good"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert run(["train", "--resume=~/good", "--training.steps", "2"]) == 0
    assert weights.read_bytes() != before
    assert list(Path().iterdir()) == []


def test_python_functions_expand_the_home_directory(home):
    overrides = {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)}
    config = load_config("digits", overrides | {"data.source": "~/photos"})
    assert train(config, "~/run") == home / "run"
    model = ddpm.load("~/run")
    images = model.sample(1, steps=1)
    ddpm.save_grid(images, "~/grid.png")
    ddpm.trace(model, steps=4, frames=4).save("~/trace.gif")
    assert (home / "grid.png").is_file()
    assert (home / "trace.gif").is_file()
    assert len(open_dataset("~/photos", image_size=28, channels=1)) == 8
    assert list(Path().iterdir()) == []


def test_an_unknown_user_is_one_line(home, capsys):
    with pytest.raises(UserError, match="write the path in full"):
        user_path("~no-such-user-here/x")
    assert run(["sample", "digits", "--num", "1", "--steps", "1", "--out=~no-such-user-here/x.png"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "write the path in full" in error


def commands(group: typer.Typer):
    for info in group.registered_commands:
        yield info.callback
    for part in group.registered_groups:
        yield from commands(part.typer_instance)


@pytest.mark.parametrize("command", list(commands(app)), ids=lambda command: command.__name__)
def test_every_path_parameter_expands_the_home_directory(command):
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        kind, *settings = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        if kind is Path or Path in typing.get_args(kind):
            assert [setting.parser for setting in settings] == [user_path], f"{name} of {command.__name__}"


def test_the_walk_finds_the_path_parameters():
    hints = [hint for command in commands(app) for hint in typing.get_type_hints(command).values()]
    assert sum(hint is Path or Path in typing.get_args(hint) for hint in hints) > 15
