"""Restoring files and folders: outputs, resuming, and pictures that cannot be used."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from restoration_cases import changed, settings

from ddpm.common.errors import UserError
from ddpm.common.pixels import save_picture, to_uint8
from ddpm.data.images import read_image
from ddpm.restoration import Task, restore_file, restore_folder


def test_folder_is_restored_and_reported(grey, pictures, tmp_path):
    out = tmp_path / "out"
    rows = restore_folder(grey[0], pictures, out, settings(samples=4))
    assert [row["name"] for row in rows] == ["0", "1", "2", "3", "4", "sub/wide"]
    for row in rows:
        assert float(row["psnr_result"]) > float(row["psnr_input"]) + 2
        assert float(row["residual"]) == pytest.approx(0.15, rel=0.4)  # the rest is the noise
        for ending in ("", "_std", "_samples", "_compare"):
            assert (out / f"{row['name']}{ending}.png").is_file()
    assert read_image(out / "sub" / "wide.png", channels=1).shape == (1, 12, 24)
    with (out / "report.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]
    assert read_image(out / "report.png").shape[1] == 6 * 16  # six strips of 12 pixels and their white border


def test_report_picture_leaves_out_unreadable_comparisons(grey, pictures, tmp_path, monkeypatch):
    out, chosen = tmp_path / "out", settings(steps=2)
    restore_folder(grey[0], pictures, out, chosen)
    (out / "3_compare.png").unlink()
    monkeypatch.setattr("ddpm.data.images.MOST_PIXELS", 16 * 60)  # of the strips only the wide one has more
    rows = restore_folder(grey[0], pictures, out, chosen)
    assert not any(row["error"] for row in rows)
    assert Image.open(out / "report.png").size == (58, 4 * 16)
    monkeypatch.setattr("ddpm.data.images.MOST_PIXELS", 100)
    restore_folder(grey[0], pictures, out, chosen)
    assert not (out / "report.png").exists()


def test_report_picture_reduces_large_pictures(grey, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm.restoration.job.STRIP_SIDE", 29)
    restore_folder(grey[0], pictures, tmp_path / "out", settings(steps=2))
    assert read_image(tmp_path / "out" / "report.png").shape == (3, 5 * 8 + 4, 29)


def test_interrupted_folder_resumes_to_equal_files(grey, pictures, tmp_path, monkeypatch):
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    chosen = settings("inpaint", 0.05, mask="random:0.5", batch_size=2)
    restore_folder(grey[0], pictures, whole, chosen)

    from ddpm.restoration import job

    calls = []

    def fail_later(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    original = job.restore_items
    monkeypatch.setattr(job, "restore_items", fail_later)
    with pytest.raises(KeyboardInterrupt):
        restore_folder(grey[0], pictures, halted, chosen)
    monkeypatch.setattr(job, "restore_items", original)
    kept = {path: path.stat().st_mtime_ns for path in halted.glob("?.png")}
    assert len(kept) == 4
    restore_folder(grey[0], pictures, halted, chosen)
    for path, before in kept.items():
        assert path.stat().st_mtime_ns == before
    for path in whole.rglob("*.png"):
        assert path.read_bytes() == (halted / path.relative_to(whole)).read_bytes(), path


def test_folder_of_other_settings_is_refused(grey, pictures, tmp_path):
    out = tmp_path / "out"
    restore_folder(grey[0], pictures, out, settings(noise=0.1))
    with pytest.raises(UserError, match="--overwrite"):
        restore_folder(grey[0], pictures, out, settings(noise=0.2))
    restore_folder(grey[0], pictures, out, settings(noise=0.2), overwrite=True)
    with (out / "report.csv").open() as file:
        assert {row["sigma"] for row in csv.DictReader(file)} == {"0.2"}


def test_overwriting_a_folder_removes_earlier_results(grey, pictures, tmp_path):
    out = tmp_path / "out"
    restore_folder(grey[0], pictures, out, settings(steps=2, samples=2))
    shutil.copy(pictures / "0.png", out / "mine.png")
    shutil.copy(pictures / "0.png", tmp_path / "outside.png")
    with (out / "report.csv").open("a") as file:
        file.write("../outside\n")
    (pictures / "4.png").unlink()
    restore_folder(grey[0], pictures, out, settings(steps=2), overwrite=True)
    expected = {f"{i}{ending}.png" for i in range(4) for ending in ("", "_compare")} | {"mine.png", "report.png"}
    assert {path.name for path in out.glob("*.png")} == expected
    assert {path.name for path in (out / "sub").iterdir()} == {"wide.png", "wide_compare.png"}
    assert (tmp_path / "outside.png").is_file()


def test_overwriting_a_file_removes_its_earlier_samples(grey, pictures, tmp_path):
    shutil.copy(pictures / "0.png", tmp_path / "x_std.png")
    restore_file(grey[0], pictures / "0.png", tmp_path / "x.png", settings(steps=2))
    assert (tmp_path / "x_std.png").is_file()  # not ours: there was no result before
    for samples, others in ((2, ["x_samples.png", "x_std.png"]), (1, [])):
        chosen = settings(steps=2, samples=samples)
        restore_file(grey[0], pictures / "0.png", tmp_path / "x.png", chosen, overwrite=True)
        assert sorted(path.name for path in tmp_path.glob("x*")) == sorted(["x.png", "x_compare.png", *others])


def test_folder_resumes_with_another_batch_size(grey, pictures, tmp_path):
    """As the error for insufficient memory advises."""
    out = tmp_path / "out"
    restore_folder(grey[0], pictures, out, settings(steps=2))
    (out / "0.png").unlink()
    kept = (out / "1.png").stat().st_mtime_ns
    restore_folder(grey[0], pictures, out, settings(steps=2, batch_size=1))
    assert (out / "0.png").is_file()
    assert (out / "1.png").stat().st_mtime_ns == kept


def test_changed_picture_is_restored_again_and_changed_mask_refused(grey, pictures, tmp_path):
    out, mask = tmp_path / "out", tmp_path / "mask.png"
    shutil.copy(pictures / "1.png", mask)
    chosen = settings("inpaint", 0.05, mask=str(mask), steps=5)

    def times():
        restore_folder(grey[0], pictures, out, chosen)
        return {path.name: path.stat().st_mtime_ns for path in out.glob("?.png")}

    before = times()
    shutil.copy(pictures / "4.png", pictures / "0.png")
    after = times()
    assert {name for name in before if before[name] != after[name]} == {"0.png"}
    shutil.copy(pictures / "2.png", mask)
    with pytest.raises(UserError, match="holds something else"):
        times()


def test_results_below_the_source_are_not_restored_again(grey, pictures):
    names = [row["name"] for row in restore_folder(grey[0], pictures, pictures / "restored", settings(steps=2))]
    again = restore_folder(grey[0], pictures, pictures / "restored", settings(steps=2))
    assert [row["name"] for row in again] == names == ["0", "1", "2", "3", "4", "sub/wide"]
    with pytest.raises(UserError, match="give another --out"):
        restore_folder(grey[0], pictures, pictures, settings(steps=2), overwrite=True)


def test_unusable_pictures_are_named_and_the_rest_restored(grey, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"not a picture")
    Image.fromarray(np.zeros((5, 30), np.uint8)).save(pictures / "low.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)).save(pictures / "colour.png")
    rows = restore_folder(grey[0], pictures, tmp_path / "out", settings())
    errors = {row["name"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"broken", "low", "colour"}
    assert "cannot be used as an image" in errors["broken"]
    assert "needs 12×12 or more" in errors["low"]
    assert "colour picture" in errors["colour"]
    assert sum(not row["error"] for row in rows) == 6
    shutil.rmtree(pictures / "sub")
    for number in range(5):
        (pictures / f"{number}.png").unlink()
    with pytest.raises(UserError, match="no picture in"):
        restore_folder(grey[0], pictures, tmp_path / "none", settings())


def test_pictures_that_differ_only_in_their_ending_keep_it(grey, pictures, tmp_path):
    shutil.copy(pictures / "0.png", pictures / "1.bmp")
    rows = restore_folder(grey[0], pictures, tmp_path / "out", settings())
    assert {"1.bmp", "1.png"} <= {row["name"] for row in rows}
    assert (tmp_path / "out" / "1.bmp.png").is_file()


def test_uppercase_and_double_endings_lose_no_picture(grey, pictures, tmp_path):
    Image.open(pictures / "0.png").save(pictures / "1.JPG")
    shutil.copy(pictures / "0.png", pictures / "1.png.bmp")  # without its ending it would be the other's 1.png
    rows = restore_folder(grey[0], pictures, tmp_path / "out", settings(steps=2))
    assert {row["name"] for row in rows} == {"0", "1.JPG", "1.png", "1.png.bmp", "2", "3", "4", "sub/wide"}
    assert all((tmp_path / "out" / f"{row['name']}.png").is_file() for row in rows)


def test_no_result_replaces_another_picture_of_the_report(grey, pictures, tmp_path):
    out = tmp_path / "out"
    shutil.copy(pictures / "0.png", pictures / "1_compare.png")
    restore_folder(grey[0], pictures, out, settings(steps=2))
    assert read_image(out / "1_compare.png").shape == (3, 16, 58)  # the four strips of picture 1
    shutil.copy(pictures / "0.png", pictures / "report.png")
    rows = restore_folder(grey[0], pictures, out, settings(steps=2))
    errors = {row["name"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"1_compare.png", "report"}
    assert "output of an earlier" in errors["1_compare.png"]
    assert "rename the input" in errors["report"]
    again = restore_folder(grey[0], out, tmp_path / "again", settings(steps=2))  # of the results, not what shows them
    assert [row["name"] for row in again if not row["error"]] == ["0", "1", "2", "3", "4", "sub/wide"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 5000},
        {"labels": 3},
        {"guidance": 2.0},
        {"precision": "fp17"},
        {"samples": 0},
        {"batch_size": 0},
        {"options": {"eta": 5.0}},
        {"task": Task("inpaint", mask="nowhere.png")},
    ],
)
def test_wrong_option_is_refused_before_any_file_changes(grey, pictures, tmp_path, wrong):
    out, good = tmp_path / "out", settings("inpaint", 0.05, mask="half", steps=2)
    with pytest.raises(UserError):
        restore_folder(grey[0], pictures, out, changed(good, **wrong))
    assert not out.exists()
    restore_folder(grey[0], pictures, out, good)
    notes = [out / "report.csv", out / "settings.json"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in notes]
    with pytest.raises(UserError):
        restore_folder(grey[0], pictures, out, changed(good, **wrong), overwrite=True)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in notes] == before


def test_folder_takes_one_label(conditional_model, tmp_path):
    for index in range(2):
        save_picture(torch.full((1, 8, 8), 90 * index, dtype=torch.uint8), tmp_path / "in" / f"{index}.png")
    with pytest.raises(UserError, match="one label"):
        restore_folder(conditional_model, tmp_path / "in", tmp_path / "out", settings(steps=2, labels=[0, 1]))
    rows = restore_folder(conditional_model, tmp_path / "in", tmp_path / "out", settings(steps=2, labels=["1"]))
    assert not any(row["error"] for row in rows)


@pytest.mark.parametrize("ending", ["_compare", "_std", "_samples"])
def test_existing_pictures_beside_a_result_are_refused(grey, pictures, tmp_path, ending):
    beside, chosen = tmp_path / f"x{ending}.png", settings(samples=2, steps=2)
    shutil.copy(pictures / "0.png", beside)
    before = beside.read_bytes()
    with pytest.raises(UserError, match=f"x{ending}.png exists"):
        restore_file(grey[0], beside, tmp_path / "x.png", chosen)
    assert beside.read_bytes() == before
    assert not (tmp_path / "x.png").exists()
    restore_file(grey[0], beside, tmp_path / "x.png", chosen, overwrite=True)
    assert beside.read_bytes() != before


def test_result_has_the_given_name(grey, pictures, tmp_path):
    restore_file(grey[0], pictures / "0.png", tmp_path / "x.PNG", settings(steps=2))
    assert sorted(path.name for path in tmp_path.glob("x*")) == ["x.PNG", "x_compare.PNG"]


def test_folder_passes_over_hidden_files_and_names_unread_formats(grey, pictures, tmp_path):
    (pictures / ".ipynb_checkpoints").mkdir()
    (pictures / "__MACOSX").mkdir()
    shutil.copy(pictures / "0.png", pictures / ".ipynb_checkpoints" / "0-checkpoint.png")
    shutil.copy(pictures / "0.png", pictures / "__MACOSX" / "0.png")
    (pictures / "._0.png").write_bytes(b"\0\5\26\7" + bytes(100))
    (pictures / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    rows = restore_folder(grey[0], pictures, tmp_path / "out", settings(steps=2))
    assert [row["name"] for row in rows] == ["0", "1", "2", "3", "4", "sub/wide", "photo.HEIC"]
    assert [row["name"] for row in rows if row["error"]] == ["photo.HEIC"]
    assert "convert it" in rows[-1]["error"]
    with (tmp_path / "out" / "report.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]


def test_folder_of_masks_is_paired_by_name(grey, pictures, tmp_path):
    masks = {}
    for index in range(4):
        mask = torch.zeros(1, 12, 12, dtype=torch.uint8)
        mask[..., 2 * index : 2 * index + 4] = 255
        save_picture(mask, tmp_path / "masks" / f"{index}.png")
        masks[index] = mask
    chosen = settings("inpaint", 0.0, mask=str(tmp_path / "masks"), degrade=False, steps=4)
    rows = {row["name"]: row for row in restore_folder(grey[0], pictures, tmp_path / "out", chosen)}
    assert {name for name, row in rows.items() if row["error"]} == {"4", "sub/wide"}
    assert "no mask" in rows["4"]["error"]
    for index, mask in masks.items():
        before = read_image(pictures / f"{index}.png", channels=1)
        after = read_image(tmp_path / "out" / f"{index}.png", channels=1)
        assert torch.equal(after[mask == 0], before[mask == 0])
        assert not torch.equal(after[mask > 0], before[mask > 0])


def test_changed_mask_of_one_picture_restores_only_that_picture(grey, pictures, tmp_path):
    shutil.rmtree(pictures / "sub")
    for index in range(5):
        save_picture(to_uint8(torch.eye(12)[None] * 2 - 1), tmp_path / "masks" / f"{index}.png")
    chosen = settings("inpaint", 0.0, mask=str(tmp_path / "masks"), degrade=False, steps=2)

    def times():
        restore_folder(grey[0], pictures, tmp_path / "out", chosen)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("?.png")}

    before = times()
    save_picture(to_uint8(torch.eye(12).flip(0)[None] * 2 - 1), tmp_path / "masks" / "3.png", overwrite=True)
    after = times()
    assert {name for name in before if before[name] != after[name]} == {"3.png"}


def test_mask_among_the_pictures_is_not_restored(grey, pictures, tmp_path):
    save_picture(to_uint8(torch.eye(12)[None] * 2 - 1), pictures / "mask.png")
    shutil.rmtree(pictures / "sub")
    chosen = settings("inpaint", 0.0, mask=str(pictures / "mask.png"), degrade=False, steps=2)
    rows = restore_folder(grey[0], pictures, tmp_path / "out", chosen)
    assert [row["name"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert not any(row["error"] for row in rows)
