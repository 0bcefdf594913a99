"""A model folder is replaced whole or not at all, and nothing but a model is ever replaced."""

import os
from pathlib import Path

import pytest
from interop_cases import (
    SMALL,
    diffusers_folder,
    make_old,
    random_unet2d,
    relative_difference,
    save,
    small_network,
)

from ddpm.common.errors import UserError
from ddpm.interop.diffusers import load_folder
from ddpm.interop.storage import replace_folder


def test_saving_replaces_a_model_and_nothing_else(tmp_path):
    first, second = small_network(), small_network(conditioning="scale_shift")
    folder = save(tmp_path / "model", first)
    save(folder, second)
    assert load_folder(folder).network.config.conditioning == "scale_shift"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("the only copy")
    with pytest.raises(UserError, match="no model folder"):
        save(precious, first)
    assert (precious / "thesis.txt").read_text() == "the only copy"


@pytest.mark.parametrize("name", [".git/config", "vae/config.json", "unet/notes.txt", "evaluation.json"])
def test_saving_never_deletes_what_is_no_part_of_a_model(tmp_path, name):
    folder = save(tmp_path / "model", small_network())
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("the only copy")
    with pytest.raises(UserError, match=f"holds {name}, .* another name"):
        save(folder, small_network())
    assert (folder / name).read_text() == "the only copy"


def test_a_link_is_no_part_of_a_model(tmp_path):
    folder = save(tmp_path / "model", small_network())
    (tmp_path / "data").mkdir()
    (folder / "data").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="holds data"):
        save(folder, small_network())


def test_saving_replaces_whatever_writers_of_models_leave(tmp_path):
    folders = [diffusers_folder(tmp_path / str(number), random_unet2d(**SMALL)) for number in range(3)]
    make_old(folders[1], pickled=True)
    (folders[2] / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    random_unet2d(**SMALL).save_pretrained(folders[2] / "unet", max_shard_size="20KB", variant="fp16")
    for folder in folders:
        for name in ("README.md", "samples.png", ".README.md.1234", ".DS_Store"):
            (folder / name).write_text("")
        save(folder, small_network())
        written = {"model_index.json", "unet", "scheduler", "ddpm.json", "README.md"}
        assert {path.name for path in folder.iterdir()} == written


def test_others_may_read_the_weights_as_they_may_the_rest(tmp_path):
    folder = save(tmp_path / "model", small_network())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode == (folder / "unet" / "config.json").stat().st_mode


def test_a_save_that_fails_leaves_the_old_model(tmp_path):
    network = small_network()
    folder = save(tmp_path / "model", network)
    with pytest.raises(TypeError):
        save(folder, small_network(), extra={"not JSON": object()})
    assert relative_difference(load_folder(folder).network, network) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_cannot_take_the_old_ones_place_leaves_it_there(tmp_path):
    network = small_network()
    folder = save(tmp_path / "model", network)
    with pytest.raises(FileNotFoundError):
        replace_folder(folder, lambda beside: beside.rmdir())
    assert relative_difference(load_folder(folder).network, network) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_on_the_disk_before_the_old_one_goes(tmp_path, monkeypatch):
    """Else a machine that dies may find the names of the new files without what is in them."""
    flushed: set[int] = set()
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(handle: int) -> None:
        fsync(handle)
        flushed.add(os.fstat(handle).st_ino)

    def checked_rename(path: Path, target: Path) -> Path:
        new = tmp_path / ".model.new"
        assert [file for file in (new, *new.rglob("*")) if file.stat().st_ino not in flushed] == []
        return rename(path, target)

    folder = save(tmp_path / "model", small_network())
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", checked_rename)
    save(folder, small_network())
    assert tmp_path.stat().st_ino in flushed


def test_a_save_killed_between_its_renames_costs_no_model(tmp_path):
    network = small_network()
    folder = save(tmp_path / "model", network)
    folder.rename(tmp_path / ".model.old")
    with pytest.raises(TypeError):
        save(folder, small_network(), extra={"not JSON": object()})
    assert relative_difference(load_folder(folder).network, network) == 0
    folder.rename(tmp_path / ".model.old")
    save(folder, small_network(conditioning="scale_shift"))
    assert load_folder(folder).network.config.conditioning == "scale_shift"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_save_left_behind_is_no_hindrance(tmp_path):
    (tmp_path / ".model.new" / "unet").mkdir(parents=True)
    (tmp_path / ".model.new" / "unet" / "half").write_text("")
    save(tmp_path / "model", small_network())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
