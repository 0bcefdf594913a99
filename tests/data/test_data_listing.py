"""The listing of images that every command shares: what it takes, passes over, and skips with a reason."""

import os
from pathlib import Path

import pytest
from data_cases import opened

from ddpm.common.errors import UserError
from ddpm.data.folder import list_images, picture_names


def listed(folder, **options):
    paths, skipped = list_images(folder, **options)
    return [str(path.relative_to(folder)) for path in paths], dict(skipped)


def test_list_images_gives_a_folders_files_before_its_sub_folders(image_folder):
    folder = image_folder(["b/2.png", "b/1.png", "a/z/1.png", "a/9.JPG", "z.webp", "y.tif"])
    assert listed(folder) == (["y.tif", "z.webp", "a/9.JPG", "a/z/1.png", "b/1.png", "b/2.png"], {})


def test_list_images_passes_over_hidden_files_and_what_is_no_image(image_folder):
    folder = image_folder(["1.png", ".ipynb_checkpoints/1-checkpoint.png", ".hidden.png", "deep/.cache/x.png"])
    for name in ("._1.png", "notes.txt", "1.png.json", "__MACOSX/._1.png", "__MACOSX/1.png", "@eaDir/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\26\7Mac OS X")
    assert listed(folder) == (["1.png"], {})


def test_list_images_without_sub_folders_names_them(image_folder):
    folder = image_folder(["1.png", "cat/2.png", ".git/3.png"])
    assert listed(folder, recursive=False) == (["1.png"], {"cat": "it is a folder; only the images beside it are read"})


def test_list_images_skips_formats_that_are_not_read_and_pipes(image_folder):
    folder = image_folder(["1.png"])
    (folder / "IMG_1.HEIC").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    assert listed(folder) == (
        ["1.png"],
        {"IMG_1.HEIC": "its format is not read: convert it to JPEG or PNG", "pipe.png": "it is not a regular file"},
    )


def test_list_images_skips_the_outputs_of_earlier_commands(image_folder):
    outputs = ["1_compare.png", "1_std.png", "1_draws.png", "1_samples.png", "report.png", "contact_sheet.png"]
    folder = image_folder(["1.png", *outputs])
    (folder / "report.csv").write_text("")
    assert listed(folder) == (["1.png"], dict.fromkeys(outputs, "it is an output of an earlier ddpm command"))


def test_list_images_takes_images_that_only_sound_like_outputs(image_folder):
    names = ["a_std.png", "a.png", "b_compare.png", "report.png", "x_samples.png"]
    assert listed(image_folder(names)) == (sorted(names), {})


def test_list_images_skips_training_runs(image_folder):
    folder = image_folder(["1.png", "run/samples/000001.png"])
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / "run" / name).write_text("")
    assert listed(folder) == (["1.png"], {"run": "it is a training run, whose pictures are not data"})


def test_list_images_expands_the_home_folder(image_folder, monkeypatch):
    folder = image_folder(["1.png"])
    monkeypatch.setenv("HOME", str(folder.parent))
    assert list_images("~/set")[0] == [folder / "1.png"]


def test_list_images_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nothing cannot be read: No such file"):
        list_images(tmp_path / "nothing")


def test_folder_of_links_to_images_is_read(image_folder, tmp_path):
    origin = image_folder(["1.png", "2.png"], where="origin")
    (tmp_path / "links" / "a").mkdir(parents=True)
    for path in origin.iterdir():
        (tmp_path / "links" / "a" / path.name).symlink_to(path)
    dataset = opened(tmp_path / "links", labels=True)
    assert (len(dataset), dataset.class_names, dataset.report.skipped) == (2, ["a"], [])


def test_linked_folder_is_a_class(image_folder, tmp_path):
    origin = image_folder(["1.png", "2.png"], where="origin")
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "three").symlink_to(origin)
    dataset = opened(tmp_path / "classes", labels=True)
    assert (len(dataset), dataset.class_names, dataset.report.skipped) == (2, ["three"], [])


def test_snapshot_of_the_hubs_cache_is_read(image_folder, tmp_path):
    blobs = image_folder(["1.png", "2.png"], where="datasets--me--set/blobs")
    snapshot = tmp_path / "datasets--me--set" / "snapshots" / "abc" / "cat"
    snapshot.mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (blobs / name).rename(blobs / name[0])
        (snapshot / name).symlink_to(f"../../../blobs/{name[0]}")
    dataset = opened(snapshot.parent, labels=True)
    assert (len(dataset), dataset.class_names, dataset.report.skipped) == (2, ["cat"], [])


def test_contact_sheet_beside_a_wrapper_folder_changes_nothing(image_folder):
    folder = image_folder(["raw-img/cat/1.png", "raw-img/dog/2.png", "contact_sheet.png"])
    assert opened(folder, labels=True).class_names == ["cat", "dog"]


def test_picture_names_keep_the_ending_where_two_would_be_one():
    paths = [Path(name) for name in ("a.png", "b.png", "b.jpg", "c/b.png", "d.png.bmp", "d.png")]
    assert picture_names(paths) == ["a", "b.png", "b.jpg", "c/b", "d.png.bmp", "d"]
