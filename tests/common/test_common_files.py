"""Paths from outside and what `~` means in them; writes that are whole or absent; locks; keys of settings."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import atomic_path, atomic_write, check_output, content_key, file_lock, folder_lock, user_path
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


def test_a_durable_write_flushes_the_file_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    done = []

    def fsync(handle):
        name = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append((name == tmp_path, (tmp_path / "x").exists(), name.read_bytes() if name.is_file() else None))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "x", "é")
    assert not done
    (tmp_path / "x").unlink()
    atomic_write(tmp_path / "x", "é", durable=True)
    assert done == [(False, False, "é".encode()), (True, True, None)]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOENT, UserError), (errno.ENOSPC, RunStopped), (errno.EDQUOT, RunStopped), (errno.EFBIG, RunStopped)],
)
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, code, kind):
    def fail(*_):
        raise OSError(code, "why")

    (tmp_path / "x.png").write_text("old")
    with pytest.raises(kind, match=r"x.png cannot be written: why"), atomic_path(tmp_path / "x.png") as beside:
        (beside.write_text("half"), fail())
    assert beside.suffix == ".png"  # it tells writers the format
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="why"):
        atomic_write(tmp_path / "x.png", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_keeps_every_other_holder_out_until_it_is_released(tmp_path, kind):
    place = tmp_path if kind == "folder" else tmp_path / "lock"
    with file_lock(place, wait=False):
        with pytest.raises(BlockingIOError), file_lock(place, wait=False):
            pass
        handle = os.open(place, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(handle)
    with file_lock(place, wait=False):
        pass


def test_equal_settings_have_equal_keys_in_any_order():
    assert content_key({"a": 1, "b": [2, 3]}) == content_key({"b": [2, 3], "a": 1})
    keys = [content_key(each) for each in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, {"a": [1, 2]}, {"a": [2, 1]})]
    assert len({*keys}) == len(keys)
    assert all(len(key) == 20 for key in keys)


def test_an_output_has_one_of_the_endings_and_is_not_there(tmp_path):
    assert check_output(tmp_path / "X.PNG", (".png", ".gif")) == tmp_path / "X.PNG"
    with pytest.raises(UserError, match=r"x.jpg should end in .png or .gif"):
        check_output(tmp_path / "x.jpg", (".png", ".gif"))
    (tmp_path / "x.gif").touch()
    with pytest.raises(UserError, match="exists"):
        check_output(tmp_path / "x.gif", (".png", ".gif"))
    check_output(tmp_path / "x.gif", (".png", ".gif"), overwrite=True)


def test_a_folder_that_is_locked_is_made_and_holds_nothing_else(tmp_path):
    folder = tmp_path / "a" / "b"
    with folder_lock(folder):
        other = os.open(folder, os.O_RDONLY)  # as another process would
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    with folder_lock(folder):  # which is there now
        assert not list(folder.iterdir())
