"""The notes about a data set: what should be told, and silence for ordinary sets."""

import numpy as np
import pytest
from data_cases import opened
from PIL import Image

from ddpm.data import datasets as datasets_module
from ddpm.data import notes as notes_module
from ddpm.data import open_dataset
from ddpm.data.notes import data_notes


def test_data_notes_are_empty_for_an_ordinary_set(image_folder):
    assert data_notes(opened(image_folder(["cat/1.png", "dog/2.png"]), labels=True)) == []
    assert data_notes(open_dataset("digits", image_size=28, channels=1, labels=True)) == []


def test_report_names_the_files_that_are_not_read(image_folder):
    folder = image_folder(["1.png"])
    (folder / "2.png").write_bytes(b"x")
    note = opened(folder).report.summary()
    assert note.splitlines() == [f"skipped 1 file of {folder}:", "  2.png: it is not an image"]


def test_data_notes_name_classes_whose_images_are_all_broken(image_folder):
    folder = image_folder(["ape/1.png", "bee/2.png", "bee/3.png", "cat/4.png"])
    for name in ("2.png", "3.png"):
        (folder / "bee" / name).write_bytes(b"x")
    dataset = opened(folder, labels=True)
    assert dataset.class_names == ["ape", "cat"]
    assert dataset.labels.tolist() == [0, 1]
    assert data_notes(dataset)[0] == "left out, because none of their images can be read: class bee"


def test_data_notes_name_declared_classes_without_images(tmp_path):
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"kind{number}" for number in range(100)))
    rows = [bytes([0, number]) + bytes([200]) * 3072 for number in range(98)]
    (tmp_path / "train.bin").write_bytes(b"".join(rows))
    dataset = opened(tmp_path, image_size=32, labels=True)
    assert len(dataset.class_names) == 100
    assert data_notes(dataset) == ["no image has classes kind98, kind99: a model cannot learn to sample them"]


def test_data_notes_name_numbers_in_the_order_of_text(image_folder):
    dataset = opened(image_folder([f"{number}/1.png" for number in range(12)]), labels=True)
    assert dataset.class_names[:4] == ["0", "1", "10", "11"]
    (note,) = data_notes(dataset)
    assert note.startswith("the class names are numbers in the order of text: 0, 1, 10, 11, ...")
    padded = opened(image_folder([f"{number:02}/1.png" for number in range(12)], where="padded"), labels=True)
    assert data_notes(padded) == []


@pytest.mark.parametrize("limit", [2**32, 100])  # in memory, and decoded when needed
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_data_notes_tell_of_12_bit_data_in_16_bit_files(tmp_path, monkeypatch, limit, channels):
    monkeypatch.setattr(datasets_module, "MOST_MEMORY_BYTES", limit)
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 4096, (32, 32)).astype(np.uint16)
        values[0, 0] = 4095  # of 65535: level 15.9
        Image.fromarray(values).save(tmp_path / f"{seed}.png")
    (note,) = data_notes(opened(tmp_path, channels=channels, image_size=32))
    assert note.startswith("no pixel is above 6% of the range (level 16 of 255)")


@pytest.mark.parametrize(("brightest", "told"), [(127, True), (128, False)])
def test_a_set_whose_pixels_reach_the_upper_half_is_not_dark(tmp_path, brightest, told):
    values = np.zeros((2, 8, 8, 1), np.uint8)
    values[1, 3, 4] = brightest
    np.savez(tmp_path / "x.npz", values)
    notes = data_notes(open_dataset(str(tmp_path / "x.npz"), image_size=8, channels=1))
    assert [f"(level {brightest} of 255)" in note for note in notes] == [True] * told


@pytest.mark.parametrize("limit", [2**32, 100])  # in memory, and decoded when needed
@pytest.mark.parametrize("bright", [0, 69, None])
def test_a_set_is_not_dark_if_one_image_or_one_channel_is_bright(tmp_path, monkeypatch, limit, bright):
    """The first and the last image count as all others; so does blue alone."""
    monkeypatch.setattr(datasets_module, "MOST_MEMORY_BYTES", limit)
    values = np.zeros((70, 8, 8, 3), np.uint8)
    if bright is not None:
        values[bright, 2, 5, 2] = 255
    np.savez(tmp_path / "x.npz", values)
    notes = data_notes(open_dataset(str(tmp_path / "x.npz"), image_size=8, channels=3))
    assert len(notes) == (bright is None)


@pytest.mark.parametrize(("size", "looked_at"), [(9, range(9)), (40, range(40)), (1999, range(0, 1999, 27))])
def test_a_large_set_is_looked_at_evenly_and_a_small_one_in_full(tmp_path, monkeypatch, size, looked_at):
    monkeypatch.setattr(datasets_module, "MOST_MEMORY_BYTES", 1)
    monkeypatch.setattr(notes_module, "LOOKED_AT", 75)
    np.savez(tmp_path / "x.npz", np.full((size, 8, 8, 1), 255, np.uint8))
    dataset, asked = open_dataset(str(tmp_path / "x.npz"), image_size=8, channels=1), []
    batch = dataset.batch
    monkeypatch.setattr(dataset, "batch", lambda indices: asked.extend(indices.tolist()) or batch(indices))
    assert data_notes(dataset) == []
    assert asked == list(looked_at)
