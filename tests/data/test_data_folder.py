"""Folders of images: classes, splits, and what is passed over."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_cases import as_array, opened
from PIL import Image

from ddpm.common.errors import UserError


def test_folder_without_classes_is_read_in_order(image_folder, pixels):
    folder = image_folder(["b.png", "a.PNG", "deep/c.png", ".hidden.png", "notes.txt.png"])
    dataset = opened(folder)
    assert (as_array(dataset) == np.stack([pixels(seed) for seed in (1, 0, 4, 2)])).all()
    assert dataset.report.skipped == []
    with pytest.raises(UserError, match="no classes"):
        opened(folder, labels=True)


def test_folder_takes_sub_folders_as_classes(image_folder):
    folder = image_folder(["dog/1.png", "cat/2.png", "dog/deep/3.png", "bird/4.png"])
    dataset = opened(folder, labels=True)
    assert dataset.class_names == ["bird", "cat", "dog"]
    assert dataset.labels.tolist() == [0, 1, 2, 2]
    assert opened(folder).labels is None
    assert opened(folder).class_names is None


def test_folder_with_splits_gives_the_split(image_folder):
    folder = image_folder(["train/a/1.png", "train/b/2.png", "val/a/3.png"])
    assert len(opened(folder)) == 2
    assert opened(folder, labels=True).class_names == ["a", "b"]
    assert len(opened(f"{folder}:test")) == 1
    assert len(opened(f"{folder}:val")) == 1
    with pytest.raises(UserError, match="no split 'dev'; it holds train, val"):
        opened(f"{folder}:dev")


def test_folder_skips_a_wrapper_around_classes(image_folder):
    folder = image_folder(["raw-img/cat/1.png", "raw-img/dog/2.png"])
    (folder / "translate.py").write_text("")
    assert opened(folder, labels=True).class_names == ["cat", "dog"]


def test_folder_skips_a_wrapper_around_splits(image_folder):
    folder = image_folder(["set/train/cat/1.png", "set/train/dog/2.png", "set/test/dog/3.png"])
    assert opened(folder, labels=True).class_names == ["cat", "dog"]
    assert len(opened(f"{folder}:test")) == 1


@pytest.mark.parametrize("name", ["rose/1.png", "train/rose/1.png"])
def test_folder_with_one_class_keeps_it(image_folder, name):
    assert opened(image_folder([name]), labels=True).class_names == ["rose"]


@pytest.mark.parametrize("name", ["backup.tar", "metadata.parquet"])
@pytest.mark.parametrize("image", ["1.png", "cat/1.png"])
def test_folder_of_images_and_a_shard_is_refused(image_folder, name, image):
    folder = image_folder([image])
    (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"holds images and {name}: name that file, or move it away"):
        opened(folder)


def test_folder_of_an_lmdb_database_is_refused_with_advice(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(UserError, match=r"LMDB.*export its images"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "beside", ["annotations/1.xml", "__MACOSX/train/a/._1.png", "__MACOSX/icon.png", "empty/deep/"]
)
@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["train/a/1.png", "train/b/2.png", "test/a/3.png"], ["a", "b"]),
        (["train/a/1.png", "train/b/2.png"], ["a", "b"]),
        (["flowers/a/1.png", "flowers/b/2.png"], ["a", "b"]),
        (["flowers/train/a/1.png", "flowers/train/b/2.png", "flowers/val/b/3.png"], ["a", "b"]),
    ],
)
def test_folder_ignores_sub_folders_without_images(image_folder, images, names, beside):
    folder = image_folder(images)
    (folder / beside).parent.mkdir(parents=True, exist_ok=True)
    if not beside.endswith("/"):
        (folder / beside).write_bytes(b"")
    dataset = opened(folder, labels=True)
    assert (len(dataset), dataset.class_names) == (2, names)
    assert dataset.report.skipped == []


@pytest.mark.parametrize("extra", ["extra/1.png", "unlabelled/a/1.png"])
@pytest.mark.parametrize(
    "images", [["train/1.png", "test/2.png"], ["train/a/1.png"], ["set/val/1.png", "set/test/2.png"]]
)
def test_folder_with_splits_beside_other_images_is_refused(image_folder, images, extra):
    """Test images would be trained on, and the splits pass for classes."""
    inner = "set/" if images[0].startswith("set/") else ""
    folder = image_folder([*images, inner + extra])
    split = "test" if inner else "train"
    with pytest.raises(UserError, match=rf"beside {extra.split('/')[0]}: name the split, as in .*set:{split}"):
        opened(folder)
    assert len(opened(f"{folder}:{split}")) == 1


def test_folder_may_have_a_class_with_the_name_of_a_split(image_folder):
    folder = image_folder(["bus/1.png", "car/2.png", "train/3.png"])
    assert opened(folder, labels=True).class_names == ["bus", "car", "train"]


@pytest.mark.parametrize("name", [".cache", ".git", ".ipynb_checkpoints"])
def test_folder_ignores_hidden_folders_beside_splits(image_folder, name):
    folder = image_folder(["train/a/1.png", "train/b/2.png", "test/a/3.png", f"{name}/4.png"])
    dataset = opened(folder, labels=True)
    assert (len(dataset), dataset.class_names) == (2, ["a", "b"])
    with pytest.raises(UserError, match=r"it holds test, train$"):
        opened(f"{folder}:dev")


def test_folder_that_cannot_be_listed_is_an_error(image_folder, monkeypatch):
    folder = image_folder(["bird/1.png", "cat/2.png", "dog/3.png"])
    listed = os.scandir

    def scandir(path):  # as root, no folder is closed
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="cat cannot be read: Permission denied; make it readable, or move it out"):
        opened(folder, labels=True)


def test_report_names_broken_files(image_folder):
    folder = image_folder(["cat/1.png", "cat/2.png", "dog/3.png"])
    (folder / "cat" / "1.png").write_bytes(b"not an image")
    Image.new("L", (5, 5)).save(folder / "dog" / "tiny.png")
    dataset = opened(folder, labels=True)
    assert len(dataset) == 2
    assert dataset.labels.tolist() == [0, 1]
    assert dict(dataset.report.skipped) == {
        "cat/1.png": "it is not an image",
        "dog/tiny.png": "5x5 is smaller than 8 pixels",
    }
    assert dataset.report.summary().splitlines()[0] == f"skipped 2 files of {folder}:"
    assert "  cat/1.png: it is not an image" in dataset.report.summary()


def test_folder_reads_every_ending_of_jpeg(tmp_path, pixels):
    for seed, name in enumerate(["a.jfif", "b.JPE"]):
        Image.fromarray(pixels(seed)).save(tmp_path / name, "JPEG")
    assert len(opened(tmp_path)) == 2


@pytest.mark.parametrize("name", ["1.heic", "1.HEIF", "1.avif", "1.jxl"])
def test_report_names_formats_that_are_not_read(image_folder, encode, pixels, write_tar, tmp_path, name):
    folder = image_folder(["cat/2.png"])
    (folder / "cat" / name).write_bytes(b"")
    members = {f"cat/{name}": b"", "cat/2.png": encode(pixels())}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    for source in (folder, tmp_path / "set.zip", write_tar(tmp_path / "set.tar", members)):
        dataset = opened(source)
        assert len(dataset) == 1
        ((said, reason),) = dataset.report.skipped
        assert said.endswith(f"cat/{name}")
        assert reason == "its format is not read: convert it to JPEG or PNG"


def test_report_summary_is_bounded(tmp_path):
    for number in range(25):
        (tmp_path / f"{number:02}.png").write_bytes(b"x")
    Image.new("L", (16, 16)).save(tmp_path / "good.png")
    assert opened(tmp_path).report.summary().splitlines()[-1] == "  and 15 more"


def test_folder_with_nothing_usable_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image that can be used: 1 were skipped, a\.png: it is not an image"):
        opened(tmp_path)


def test_report_counts_sizes_and_datasets_may_be_non_square(image_folder):
    folder = image_folder(["a.png", "b.png"], height=20, width=30)
    dataset = opened(folder, image_size=(16, 24), channels=1)
    assert dataset.image_shape == (1, 16, 24)
    assert dataset.report.sizes == {(20, 30): 2}
