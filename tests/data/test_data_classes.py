"""Where classes come from besides folders: numbers that do not count from 0, and EDM's dataset.json."""

import json
import zipfile

import numpy as np
import pytest
from data_cases import opened

from ddpm.common.errors import UserError


@pytest.mark.parametrize(
    ("numbers", "class_names"),
    [([1, 2, 3, 1], ["1", "2", "3"]), ([7, 3, 3, 7], ["3", "7"]), ([10, 9, 0, 9], ["0", "9", "10"])],
)
def test_numbers_that_have_images_are_the_classes(tmp_path, pixels, encode, write_idx, write_tar, numbers, class_names):
    images = np.stack([pixels(seed, channels=1) for seed in range(4)])
    np.savez(tmp_path / "x.npz", images, np.array(numbers))
    write_idx(tmp_path / "emnist-letters-train-images-idx3-ubyte", images)
    write_idx(tmp_path / "emnist-letters-train-labels-idx1-ubyte", np.array(numbers, np.uint8))
    members = {}
    for index, number in enumerate(numbers):
        members |= {f"{index}.png": encode(images[index]), f"{index}.cls": str(number).encode()}
    write_tar(tmp_path / "x.tar", members)
    for name in ("x.npz", "emnist-letters-train-images-idx3-ubyte", "x.tar"):
        dataset = opened(tmp_path / name, labels=True, channels=1)
        assert dataset.class_names == class_names
        assert [int(class_names[label]) for label in dataset.labels] == numbers


@pytest.fixture
def edm_archive(tmp_path, pixels, encode):
    """edm_archive(entries, shards) -> the zip and the folder unpacked from it, six images in so many shard folders."""

    def make(entries, shards: int = 2, top: str = ""):
        names = [f"{index % shards:05}/img{index:08}.png" for index in range(6)]
        with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
            for seed, name in enumerate(names):
                archive.writestr(top + name, encode(pixels(seed)))
            labels = entries(names) if entries else None
            archive.writestr(f"{top}dataset.json", json.dumps({"labels": labels}))
        with zipfile.ZipFile(tmp_path / "edm.zip") as archive:
            archive.extractall(tmp_path / "edm")
        return tmp_path / "edm.zip", tmp_path / "edm"

    return make


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("top", ["", "set/"])
def test_dataset_json_gives_the_classes(edm_archive, pixels, shards, top):
    expected = {pixels(seed).tobytes(): str(seed % 3) for seed in range(6)}
    for source in edm_archive(lambda names: [[name, int(name[-5]) % 3] for name in names], shards, top):
        dataset = opened(source, labels=True)
        assert dataset.class_names == ["0", "1", "2"]
        found = {
            image.permute(1, 2, 0).numpy().tobytes(): dataset.class_names[label]
            for image, label in zip(dataset.images, dataset.labels, strict=True)
        }
        assert found == expected


def test_dataset_json_with_null_labels_means_no_classes(edm_archive):
    for source in edm_archive(None):
        assert len(opened(source)) == 6
        with pytest.raises(UserError, match=r"has no classes: its dataset.json says so \(labels: null\)"):
            opened(source, labels=True)


@pytest.mark.parametrize(
    ("entries", "trouble"),
    [
        ([["00000/other.png", 1]], "labels other images, such as 00000/other.png; name these in it, as 1.png"),
        ([["a\x1b[2J.png", 1]], r"labels other images, such as a\x1b[2J.png; name these in it, as 1.png"),
        ([], "labels no image; name these in it, as 1.png"),
        (3, 'is not of the form {"labels": [["NAME", CLASS], ...]}; mend it'),
        ([["1.png", 1], ["2.png", -1]], "numbers classes other than 0..65535; mend it"),
        ([["1.png", 1.5], ["2.png", 0]], "numbers classes other than 0..65535; mend it"),
    ],
)
def test_what_is_wrong_with_a_dataset_json_is_said(image_folder, tmp_path, entries, trouble):
    folder = image_folder(["1.png", "2.png"])
    (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    for source in (folder, tmp_path / "x.zip"):
        with pytest.raises(UserError) as said:
            opened(source, labels=True)
        assert str(said.value) == f"{source} has no classes: its dataset.json {trouble}, or set --data.labels false"


def test_dataset_json_that_leaves_out_an_image_is_refused_with_labels(edm_archive):
    for source in edm_archive(lambda names: [[name, 1] for name in names[1:]]):
        assert len(opened(source)) == 6
        with pytest.raises(UserError, match=r"holds labels from -1 to 1.*-1 also stands for none.*, first for 00000/"):
            opened(source, labels=True)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"labels": 3}', '{"labels": [["other.png", 1]]}', "[" * 100_000])
def test_dataset_json_of_another_form_leaves_the_folders_as_classes(image_folder, tmp_path, content):
    folder = image_folder(["cat/1.png", "dog/2.png"])
    (folder / "dataset.json").write_text(content)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    for source in (folder, tmp_path / "x.zip"):
        assert opened(source, labels=True).class_names == ["cat", "dog"]
