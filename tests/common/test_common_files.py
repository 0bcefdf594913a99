"""Paths from outside: what `~` means, everywhere a user names a file."""

from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.generate import generate
from ddpm.interop.convert import convert
from ddpm.plotting.trace import trace


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own; the working folder is another."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_user_path_expands_the_home_folder_and_nothing_else(home):
    assert user_path("~/a/b") == home / "a" / "b"
    assert user_path(Path("~")) == home
    for name in ("a/~/b", "./~", "/a", "a~"):
        assert user_path(name) == Path(name)


def test_user_path_of_an_unknown_user_is_a_user_error(home):
    with pytest.raises(UserError, match="~nobody-of-this-name/x"):
        user_path("~nobody-of-this-name/x")
    with pytest.raises(UserError, match="~nobody-of-this-name"):
        ddpm.load("~nobody-of-this-name/model")


def test_everything_written_from_python_goes_to_the_home_folder(home, model):
    model.save("~/model")
    generate(model, "~/grid.png", num=1, steps=2)
    generate(model, "~/arrays.npz", num=1, steps=2)
    generate(model, "~/folder", num=1, steps=2)
    ddpm.save_grid(torch.zeros(1, 1, 8, 8), "~/zeros.png")
    trace(model, steps=2, frames=2).save("~/trace.png")
    convert("~/model", "~/converted")
    written = {path.name for path in home.iterdir()}
    assert written == {"model", "grid.png", "arrays.npz", "folder", "zeros.png", "trace.png", "converted"}
    assert not list((home.parent / "here").iterdir())
    assert ddpm.load("~/converted").weights_hash == model.weights_hash
