"""Restoring files and folders: outputs, resuming, masks and unusable pictures."""

import csv
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr
from ddpm.common.pixels import save_picture, to_float, to_uint8
from ddpm.data.images import read_image
from ddpm.model import SamplingOptions
from ddpm.restoration import RestoreSettings, Task, restore_file, restore_folder
from ddpm.restoration.job import Reader
from ddpm.restoration.operators import from_file
from ddpm.restoration.tasks import read_picture


def settings(name="denoise", noise=0.15, **options):
    task = {key: options.pop(key) for key in ("scale", "filter", "mask", "kernel") if key in options}
    plain = RestoreSettings(Task(name, **task), noise=noise, degrade=options.pop("degrade", True))
    return changed(plain, precision="fp32", **options)


def changed(settings, **options):
    """The settings with some fields, or some fields of their sampling options, changed."""
    own = {field.name for field in fields(RestoreSettings)}
    sampling = SamplingOptions.of(settings.sampling, **{k: v for k, v in options.items() if k not in own})
    return replace(settings, sampling=sampling, **{k: v for k, v in options.items() if k in own})


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("superresolve", {"scale": 2}),
        ("superresolve", {"scale": 5, "filter": "bicubic"}),
        ("deblur", {"kernel": "gaussian:0.8"}),
        ("deblur", {"kernel": "box:3"}),
        ("deblur", {"kernel": "motion:4:30"}),
        ("inpaint", {"mask": "half"}),
    ],
)
def test_every_task_improves_on_its_input(grey, pictures, tmp_path, name, options):
    item, row = restore_file(
        grey[0], pictures / "0.png", tmp_path / "x.png", settings(name, 0.05, samples=4, **options)
    )
    assert row["psnr_result"] > max(row["psnr_input"], row["psnr_baseline"])
    assert bool(item.operator.notes) == (options.get("scale") == 5)


def test_picture_is_the_measurement_without_degrade(grey, tmp_path):
    model, prior = grey
    x = prior.sample(1)
    small = torch.nn.functional.avg_pool2d(x, 2)[0]
    save_picture(to_uint8(small), tmp_path / "small.png")
    _, row = restore_file(
        model, tmp_path / "small.png", tmp_path / "x.png", settings("superresolve", 0.0, degrade=False)
    )
    restored = to_float(read_image(tmp_path / "x.png", channels=1))
    assert restored.shape == (1, 12, 12)
    assert (torch.nn.functional.avg_pool2d(restored[None], 2)[0] - small).abs().max() < 0.05
    assert "psnr_result" not in row


@pytest.mark.parametrize("method", ["ddnm", "ddrm"])
def test_rounding_of_a_blurred_picture_counts_as_noise(grey, tmp_path, method):
    """The inverse of this blur amplifies the rounding 100,000 times."""
    model, prior = grey
    x = prior.sample(1)
    task = Task("deblur", kernel="gaussian:1.5")
    save_picture(to_uint8(task.operator((1, 12, 12)).H(x)[0]), tmp_path / "blurred.png")
    chosen = settings("deblur", 0.0, kernel="gaussian:1.5", degrade=False, method=method)
    item, _ = restore_file(model, tmp_path / "blurred.png", tmp_path / "x.png", chosen)
    assert item.sigma == pytest.approx(1 / 255 / 12**0.5)
    restored = to_float(read_image(tmp_path / "x.png", channels=1))
    assert psnr(restored[None], x) > psnr(item.y[None], x) + 1


def test_reader_keeps_few_operators(grey, pictures, tmp_path):
    reader = Reader(grey[0], settings())
    for side in range(12, 30):
        Image.new("L", (side, side)).save(tmp_path / "x.png")
        first, again = (reader.read(tmp_path / "x.png", "x", tmp_path / "out.png").operator for _ in range(2))
        assert first is again
    assert len(reader.operators) <= 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deblur", {"kernel": "gaussian:0.5"}),
        ("superresolve", {"scale": 4, "filter": "bicubic"}),
        ("inpaint", {"mask": "half"}),
        ("deblur", {"kernel": "gaussian:1.5", "degrade": True}),
    ],
)
def test_measurement_stays_exact_if_its_rounding_is_harmless(grey, pictures, tmp_path, name, options):
    reader = Reader(grey[0], settings(name, 0.0, **{"degrade": False, **options}))
    assert reader.read(pictures / "0.png", "0", tmp_path / "x.png").sigma == 0


def test_white_mask_pixels_are_lost_and_the_others_kept(grey, tmp_path):
    model, prior = grey
    image = to_uint8(prior.sample(1)[0])
    mask = torch.zeros(1, 12, 12, dtype=torch.uint8)
    mask[:, 3:9, 3:9] = 255
    damaged = torch.where(mask > 0, 77, image)
    for name, picture in {"mask": mask, "damaged": damaged}.items():
        save_picture(picture, tmp_path / f"{name}.png")
    for method in ("ddrm", "ddnm", "repaint"):
        chosen = settings("inpaint", 0.0, mask=str(tmp_path / "mask.png"), method=method, degrade=False, steps=20)
        restore_file(model, tmp_path / "damaged.png", tmp_path / f"{method}.png", chosen)
        restored = read_image(tmp_path / f"{method}.png", channels=1)
        assert torch.equal(restored[mask == 0], image[mask == 0])
        lost = (restored - image.float())[mask > 0].square().mean()
        assert lost < (damaged - image.float())[mask > 0].square().mean()


@pytest.mark.parametrize("colour", [0, 90, 255])
def test_painted_pixels_of_a_transparent_mask_are_lost(tmp_path, colour):
    painted = np.zeros((12, 12, 2), np.uint8)
    painted[3:9, 3:9] = (colour, 255)
    Image.fromarray(painted, "LA").save(tmp_path / "mask.png")
    operator = Task("inpaint", mask=str(tmp_path / "mask.png")).operator((1, 12, 12))
    assert torch.equal(operator.known[0] == 0, torch.from_numpy(painted[..., 1] == 255))


def test_kernel_is_0_at_transparent_pixels(tmp_path):
    bar = np.full((5, 5, 2), 255, np.uint8)
    bar[[0, 1, 3, 4], :, 1] = 0
    Image.fromarray(bar, "LA").save(tmp_path / "kernel.png")
    assert torch.equal(from_file(tmp_path / "kernel.png")[:, 0], torch.tensor([0, 0, 0.2, 0, 0], dtype=torch.float64))


def test_colorize_gives_a_colour_picture(colour, tmp_path):
    model, prior = colour
    Image.fromarray(to_uint8(prior.sample(1)[0].mean(0)).numpy()).save(tmp_path / "grey.png")
    restore_file(model, tmp_path / "grey.png", tmp_path / "x.png", settings("colorize", 0.0, degrade=False))
    assert read_image(tmp_path / "x.png").shape == (3, 8, 8)


def test_noise_is_estimated_if_none_is_given(grey, tmp_path):
    model, prior = grey
    x = torch.cat([torch.cat([*prior.sample(4, seed=i)], dim=-1) for i in range(4)], dim=-2) * 0.5
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    save_picture(to_uint8(noisy), tmp_path / "noisy.png")
    item, _ = restore_file(model, tmp_path / "noisy.png", tmp_path / "x.png", settings(noise=None, degrade=False))
    assert item.sigma == pytest.approx(0.1, rel=0.25)


def test_alpha_is_flattened_on_the_models_background(grey, tmp_path, monkeypatch):
    model, _ = grey
    Image.new("LA", (12, 12), (200, 0)).save(tmp_path / "clear.png")
    monkeypatch.setitem(model.provenance, "config", {"data": {"background": 30}})
    item = Reader(model, settings("denoise", 0.1, degrade=False)).read(tmp_path / "clear.png", "a", tmp_path / "x.png")
    assert (to_uint8(item.y) == 30).all()


def test_grey_rgb_picture_is_read_as_grey(tmp_path):
    Image.fromarray(np.full((12, 12, 3), 90, np.uint8)).save(tmp_path / "rgb_but_grey.png")
    assert read_picture(tmp_path / "rgb_but_grey.png", 1).shape == (1, 12, 12)


def test_tinted_scan_becomes_grey_and_colour_is_refused(tmp_path):
    grey = torch.randint(0, 250, (12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scan = torch.stack([grey + 2, grey, grey + 1])
    save_picture(scan, tmp_path / "scan.png")
    found = to_uint8(read_picture(tmp_path / "scan.png", 1))[0]
    expected = (0.299 * scan[0] + 0.587 * scan[1] + 0.114 * scan[2]).round()
    assert torch.equal(found.float(), expected)
    sepia = torch.stack([grey, (0.8 * grey).byte(), (0.5 * grey).byte()])
    save_picture(sepia, tmp_path / "sepia.png")
    with pytest.raises(UserError, match=r"colour picture.*convert\('L'\)"):
        read_picture(tmp_path / "sepia.png", 1)


def test_colorize_takes_a_toned_photograph(colour, tmp_path):
    model, prior = colour
    grey = to_uint8(prior.sample(1)[0].mean(0))
    save_picture(torch.stack([grey, (0.8 * grey).byte(), (0.5 * grey).byte()]), tmp_path / "sepia.png")
    item, _ = restore_file(
        model, tmp_path / "sepia.png", tmp_path / "x.png", settings("colorize", 0.0, degrade=False, steps=4)
    )
    expected = Image.open(tmp_path / "sepia.png").convert("L")
    assert np.array_equal(to_uint8(item.y)[0].numpy(), np.asarray(expected))
    assert read_image(tmp_path / "x.png").shape == (3, 8, 8)


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


def test_erased_picture_as_mask_loses_the_erased_part(grey, tmp_path):
    _, prior = grey
    picture = to_uint8(prior.sample(1)[0])[0].numpy()
    erased = np.stack([picture, np.full_like(picture, 255)], axis=-1)
    erased[3:7, 3:7] = 0
    Image.fromarray(erased, "LA").save(tmp_path / "erased.png")
    operator = Task("inpaint", mask=str(tmp_path / "erased.png")).operator((1, 12, 12))
    expected = torch.ones(12, 12, dtype=torch.bool)
    expected[3:7, 3:7] = False
    assert torch.equal(operator.known[0], expected)
    assert operator.notes == ["11% of the pixels are lost by the mask erased.png"]


def test_mask_painted_over_most_of_the_picture_loses_the_painted_part(tmp_path):
    painted = np.zeros((12, 12, 2), np.uint8)
    painted[:, :10] = (200, 255)
    Image.fromarray(painted, "LA").save(tmp_path / "mask.png")
    known = Task("inpaint", mask=str(tmp_path / "mask.png")).operator((1, 12, 12)).known[0]
    assert torch.equal(known, torch.arange(12).expand(12, 12) >= 10)


@pytest.mark.parametrize("seed", [-1, 10**20])
def test_any_whole_number_is_a_seed(grey, pictures, tmp_path, seed):
    task = Task("inpaint", mask="random:0.5", seed=seed)
    known = task.operator((1, 64, 64)).known
    assert float(known.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert torch.equal(known, task.operator((1, 64, 64)).known)
    assert not torch.equal(known, replace(task, seed=seed + 1).operator((1, 64, 64)).known)
    chosen = replace(settings("inpaint", 0.0, steps=2, seed=seed, mask="half"), task=task)
    _, row = restore_file(grey[0], pictures / "0.png", tmp_path / "x.png", chosen)
    assert not row["error"]
