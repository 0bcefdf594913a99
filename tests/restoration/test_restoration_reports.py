"""What a restoration hands on and reports: noise in the right units, each image its own row, name, seed and label."""

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from restoration_cases import settings

from ddpm.common.pixels import save_picture, to_uint8
from ddpm.common.randomness import derive_seed
from ddpm.data.images import read_image
from ddpm.restoration import RestoreSettings, Task, operators, restore
from ddpm.restoration.job import (
    Item,
    Reader,
    averages,
    batches,
    degrade,
    pseudo_inverse,
    residual,
    restore_items,
    rounding_noise,
    save_result,
    write_report,
)
from ddpm.restoration.methods import METHODS
from ddpm.restoration.operators import Denoising, Inpainting, Separable, superresolution
from ddpm.restoration.posterior import Restored, estimate_noise
from ddpm.samplers.grid import timestep_grid


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def watched(monkeypatch):
    """The calls of a method "watched", which returns y enlarged to images; each call as a dictionary."""
    calls = []

    def run(denoiser, y, operator, sigma_y, timesteps, *, noise, callback=None, eta=0.85):
        draws = [noise(), noise()]
        calls.append({name: value for name, value in locals().items() if name not in ("calls", "noise")})
        return 0.4 * draws[0].clamp(-1, 1)

    monkeypatch.setitem(METHODS, "watched", replace(METHODS["ddrm"], run=run, options={"eta": 0.85}))
    return calls


def drawn(seed, name, sample, shape):
    """The first two tensors of an image's own stream."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "restore", name, sample))
    return [torch.randn(shape, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(("size", "tiles"), [((8, 8), 1), ((8, 12), 2), ((12, 10), 4)])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_restore_hands_each_run_its_own_images_labels_noise_and_grid(
    conditional_model, watched, size, tiles, batch_size
):
    """Samples of an image follow each other; a run has as many as fit with all their tiles into a forward pass."""
    model, shape = conditional_model, (1, *size)
    y, labels, names = random(3, *shape), [2, 0, 1], ["c", "a", "b"]
    operator = Denoising(shape)
    options = {"labels": labels, "names": names, "seed": 6, "steps": 7, "batch_size": batch_size, "eta": 0.3}
    found = restore(model, y, operator, method="watched", noise=0.15, samples=2, precision="fp32", **options)
    jobs = [(image, sample) for image in range(3) for sample in range(2)]
    fit = max(1, batch_size // tiles)
    assert [len(call["y"]) for call in watched] == [len(jobs[i : i + fit]) for i in range(0, 6, fit)]
    assert torch.equal(torch.cat([call["y"] for call in watched]), y.repeat_interleave(2, 0))
    streams = [drawn(6, names[image], sample, shape) for image, sample in jobs]
    for number in range(2):
        together = torch.cat([call["draws"][number] for call in watched])
        assert torch.equal(together, torch.stack([stream[number] for stream in streams]))
    expected = torch.stack([0.4 * stream[0].clamp(-1, 1) for stream in streams])
    assert torch.allclose(found.samples, expected.reshape(3, 2, *shape), atol=1e-6)
    start = 0
    for call in watched:
        here = [labels[image] for image, _ in jobs[start : start + len(call["y"])]]
        start += len(call["y"])
        inner = call["denoiser"] if tiles == 1 else call["denoiser"].denoiser
        assert inner.labels.tolist() == here * tiles  # tile by tile
        assert call["sigma_y"] == pytest.approx(0.3)
        assert call["eta"] == 0.3
        assert list(call["timesteps"]) == list(timestep_grid(model.diffusion.schedule, 7, "trailing"))
    assert found.mean.shape == (3, *shape)
    deviation = (expected.reshape(3, 2, *shape)[:, 0] - expected.reshape(3, 2, *shape)[:, 1]).abs() / 2
    assert torch.allclose(found.std, deviation / 2, atol=1e-6)  # of images in [0, 1]


def test_restore_takes_the_spacing_and_default_names_and_steps(conditional_model, watched):
    y, operator = random(2, 1, 8, 8), Denoising((1, 8, 8))
    restore(conditional_model, y, operator, method="watched", spacing="uniform", seed=1, precision="fp32")
    schedule = conditional_model.diffusion.schedule
    assert list(watched[0]["timesteps"]) == list(timestep_grid(schedule, 20, "uniform"))
    assert torch.equal(watched[0]["draws"][0][1], drawn(1, "1", 0, (1, 8, 8))[0])
    assert watched[0]["denoiser"].labels is None
    assert watched[0]["eta"] == 0.85


@pytest.mark.parametrize("sides", [(8, 10), (9, 13)])
def test_estimate_noise_is_the_median_detail_of_blocks(sides):
    """(a - b - c + d)/2 of each block of two by two; a last odd row or column is left out; lost blocks do not count."""
    y = random(2, *sides, seed=3)
    known = random(2, *sides, seed=4) < 1.2
    details, usable = [], []
    for channel in range(2):
        for row in range(0, sides[0] - 1, 2):
            for column in range(0, sides[1] - 1, 2):
                a, b = y[channel, row, column : column + 2].tolist()
                c, d = y[channel, row + 1, column : column + 2].tolist()
                details.append(abs(a - b - c + d) / 2)
                usable.append(bool(known[channel, row : row + 2, column : column + 2].all()))
    median = torch.tensor(details, dtype=torch.float64).median()
    assert estimate_noise(y) == pytest.approx(float(median) / 0.6744897501960817)
    left = torch.tensor([d for d, use in zip(details, usable, strict=True) if use], dtype=torch.float64)
    assert 16 <= len(left) < len(details)
    assert estimate_noise(y, known) == pytest.approx(float(left.median()) / 0.6744897501960817)
    half = y.bfloat16()
    assert estimate_noise(half) == estimate_noise(half.double())


def test_degrade_adds_noise_of_sigma_on_the_unit_scale_to_what_is_seen():
    shape = (1, 12, 10)
    image = random(*shape, seed=1).clamp(-1, 1)
    known = torch.arange(10).expand(12, 10) % 3 > 0
    for operator in (Denoising(shape), Inpainting(shape, known), superresolution(shape, 2)):
        clean = operator.H(image[None])[0]
        assert torch.equal(degrade(image, operator, 0.0, 3), clean)
        noise = (degrade(image, operator, 0.2, 3) - clean) / 0.4
        expected = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        if isinstance(operator, Inpainting):
            expected = expected * known
        torch.testing.assert_close(noise, expected, atol=1e-5, rtol=0)


def test_rounding_counts_as_noise_only_if_the_inverse_amplifies_it():
    """σ of rounding to 256 levels is 1/(255·√12), a uniform error of one level's width."""
    for smallest, expected in ((1 / 49, 0.0), (1 / 51, 1 / (255 * math.sqrt(12)))):
        operator = Separable((1, 4, 4), torch.diag(torch.tensor([1.0, 1, 1, smallest])), torch.eye(4))
        assert rounding_noise(operator) == pytest.approx(expected)


def item_of(operator, y, out, sigma=0.1, original=None, name="a"):
    return Item(name, out, y, operator, sigma, original)


def test_saved_result_and_its_row_are_of_this_image(tmp_path):
    """Every number against its definition on [0, 1], and every panel of the picture against its image."""
    shape = (1, 12, 14)
    operator = superresolution(shape, 2)
    original = (random(*shape, seed=1) / 3).clamp(-1, 1)
    y = operator.H(original[None])[0] + 0.05
    samples = (original + random(3, *shape, seed=2) / 20).clamp(-1, 1)
    restored = Restored(samples[None])
    item = item_of(operator, y, tmp_path / "x.png", 0.123456, original, "sub/a")
    row = save_result(item, restored, 1.23456)

    enlarged = y.repeat_interleave(2, -2).repeat_interleave(2, -1)
    mean, spread = samples.mean(0), samples.double().std(0, correction=0) / 2
    inverse = operator.H_pinv(y[None])[0]
    assert (row["name"], row["error"], row["sigma"], row["seconds"]) == ("sub/a", "", 0.12346, 1.235)
    misfit = (torch.nn.functional.avg_pool2d(mean, 2) - y).double() / 2
    assert row["residual"] == pytest.approx(float(misfit.square().mean().sqrt()), abs=2e-5)
    assert row["spread"] == pytest.approx(float(spread.mean()), abs=2e-5)
    for name, image in (("input", enlarged), ("baseline", inverse), ("result", mean)):
        error = ((image - original).double() / 2).square().mean()
        assert row[f"psnr_{name}"] == pytest.approx(-10 * math.log10(error), abs=0.01)
        assert 0 < row[f"ssim_{name}"] < 1

    panels = np.asarray(Image.open(tmp_path / "x_compare.png").convert("L")).astype(int)
    uncertainty = (spread / 0.25).clamp(0, 1) * 2 - 1
    expected = [original, enlarged, inverse, mean, uncertainty.float()]
    width = panels.shape[1] // len(expected)
    for number, image in enumerate(expected):
        levels = to_uint8(image)[0].numpy().astype(int)
        panel = panels[:, number * width : (number + 1) * width + 4]
        windows = np.lib.stride_tricks.sliding_window_view(panel, levels.shape)
        assert (np.abs(windows - levels).max((2, 3)) <= 1).any(), number
    found = read_image(tmp_path / "x.png", channels=1)
    assert (found.int() - to_uint8(mean).int()).abs().max() <= 1
    assert (read_image(tmp_path / "x_std.png", channels=1).int() - to_uint8(uncertainty).int()).abs().max() <= 1
    without = save_result(replace(item, original=None), Restored(samples[None, :1]), 0.0)
    assert not any(key.startswith(("psnr", "ssim")) for key in without)
    assert without["spread"] == 0


def test_residual_counts_only_what_the_operator_sees():
    known = torch.arange(20).reshape(1, 4, 5) % 3 > 0
    operator = Inpainting((1, 4, 5), known)
    y, mean = operator.H(random(1, 1, 4, 5))[0], random(1, 4, 5, seed=3)
    found = residual(item_of(operator, y, None), Restored(mean[None, None]))
    misfit = (mean - y)[known] / 2
    assert found == pytest.approx(float(misfit.square().mean().sqrt()), rel=1e-5)
    assert torch.equal(pseudo_inverse(item_of(operator, 3 * y, None))[0], (3 * y).clamp(-1, 1))


def test_averages_are_over_the_images_that_have_a_number():
    rows = [
        {"name": "1", "error": "", "digest": "5", "sigma": "0.1", "psnr_result": 20.0, "ssim_result": ""},
        {"name": "2", "error": "bad"},
        {"name": "3", "error": "", "digest": "6", "sigma": 0.4, "psnr_result": "31", "ssim_result": 0.5, "x": None},
        {"name": "4", "error": "", "psnr_result": math.inf},
    ]
    assert averages(rows) == {"sigma": pytest.approx(0.25), "psnr_result": pytest.approx(25.5), "ssim_result": 0.5}


def test_report_has_every_column_and_empty_cells_for_failures(tmp_path):
    write_report(tmp_path / "r.csv", [{"name": "a", "error": "no"}, {"name": "b", "error": "", "sigma": 0.5, "z": 1}])
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"name": "a", "error": "no", "sigma": "", "z": ""}
    assert rows[1] == {"name": "b", "error": "", "sigma": "0.5", "z": "1"}


def test_batches_share_operator_and_sigma_and_fit_with_all_samples(grey, tmp_path):
    """In the order of the pictures; failures come with the batch in which they were met."""
    model, _ = grey
    paths = {}
    for index, shape in enumerate([(12, 12), (12, 12), (12, 12), (14, 12), (14, 12), (5, 5), (12, 12)]):
        picture = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        paths[str(index)] = tmp_path / f"{index}.png"
        save_picture(picture, paths[str(index)])

    def grouped(**options):
        found = batches(model, paths, {"4"}, tmp_path / "out", settings(degrade=False, **options))
        return [([item.name for item in items], [row["name"] for row in rows]) for items, rows in found]

    assert grouped(batch_size=100) == [(["0", "1", "2"], []), (["3"], ["4", "5"]), (["6"], [])]
    assert grouped(batch_size=2) == [(["0", "1"], []), (["2"], []), (["3"], ["4", "5"]), (["6"], [])]
    assert grouped(batch_size=5, samples=2)[0][0] == ["0", "1", "2"]  # the third still begins below five
    assert grouped(batch_size=4, samples=2)[0][0] == ["0", "1"]
    auto = grouped(noise=None, batch_size=100)
    assert [names for names, _ in auto if names][:3] == [["0"], ["1"], ["2"]]  # each has a σ of its own


def test_restore_items_keep_their_order_options_and_share_of_the_time(grey, watched, monkeypatch):
    model, _ = grey
    operator = Denoising(model.image_shape)
    now = iter([10.0, 13.0])
    monkeypatch.setattr("ddpm.restoration.job.time", SimpleNamespace(monotonic=lambda: next(now)))
    items = [item_of(operator, random(1, 12, 12, seed=i), None, 0.2, name=f"n{i}") for i in range(3)]
    chosen = RestoreSettings(Task("denoise"), "watched", noise=0.7, samples=2, options={"eta": 0.1})
    results = restore_items(model, items, chosen)
    assert [result[0].name for result in results] == ["n0", "n1", "n2"]
    assert [seconds for *_, seconds in results] == [1.0, 1.0, 1.0]
    assert watched[0]["sigma_y"] == pytest.approx(0.4)  # the items' σ, not that of the settings
    assert watched[0]["eta"] == 0.1
    for item, restored, _ in results:
        expected = [0.4 * drawn(0, item.name, sample, (1, 12, 12))[0].clamp(-1, 1) for sample in range(2)]
        assert torch.allclose(restored.samples, torch.stack(expected)[None], atol=1e-6)
    assert restore_items(model, [], chosen) == []


def test_reader_degrades_with_the_pictures_own_noise_and_estimates_on_the_unit_scale(grey, tmp_path):
    model, prior = grey
    save_picture(to_uint8(prior.sample(1)[0]), tmp_path / "a.png")
    clean = read_image(tmp_path / "a.png", channels=1) / 127.5 - 1
    chosen = settings(noise=0.2, seed=9)
    item = Reader(model, chosen).read(tmp_path / "a.png", "sub/a", tmp_path / "x.png")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(derive_seed(9, "degrade", "sub/a")))
    torch.testing.assert_close(item.y, clean + 0.4 * noise)
    assert torch.equal(item.original, clean)
    assert (item.sigma, item.name, item.out) == (0.2, "sub/a", tmp_path / "x.png")
    measured = Reader(model, settings(noise=None, degrade=False)).read(tmp_path / "a.png", "a", tmp_path / "x.png")
    assert measured.sigma == pytest.approx(estimate_noise(clean) / 2)
    assert measured.original is None


def test_settings_json_leaves_out_only_the_batch_size(tmp_path):
    """Two settings that give other pictures have other notes."""
    plain = settings(batch_size=3)
    changes = [
        replace(plain, method="ddrm"),
        replace(plain, noise=0.3),
        replace(plain, degrade=False),
        replace(plain, samples=2),
        replace(plain, options={"eta": 0.5}),
        replace(plain, task=replace(plain.task, scale=3)),
        settings(batch_size=3, steps=4),
        settings(batch_size=3, seed=4),
    ]
    assert plain.as_json() == settings(batch_size=8).as_json()
    assert all(other.as_json() != plain.as_json() for other in changes)
    mask = tmp_path / "mask.png"
    save_picture(to_uint8(torch.eye(12)[None] * 2 - 1), mask)
    one = settings("inpaint", mask=str(mask)).as_json()
    save_picture(to_uint8(torch.eye(12).flip(0)[None] * 2 - 1), mask, overwrite=True)
    assert settings("inpaint", mask=str(mask)).as_json() != one


@pytest.mark.parametrize("width", [7, 8])
def test_half_mask_keeps_the_left_half(width):
    known = Task("inpaint", mask="half").operator((2, 5, width)).known
    assert torch.equal(known, (torch.arange(width) < width // 2).expand(2, 5, width))


def test_tasks_make_the_operators_of_their_parameters():
    """Kernels along both axes, motion with its direction, the scale and the filter, and the fraction that is lost."""
    shape = (1, 9, 12)
    x = random(1, *shape)
    taps = operators.gaussian(0.7)
    pairs = [
        (Task("deblur", kernel="gaussian:0.7"), operators.separable_blur(shape, taps, taps)),
        (Task("deblur", kernel="box:3"), operators.separable_blur(shape, operators.box(3), operators.box(3))),
        (Task("deblur", kernel="motion:4:35"), operators.CircularBlur(shape, operators.motion(4, 35))),
        (Task("deblur", kernel="motion:4"), operators.CircularBlur(shape, operators.motion(4, 0))),
        (Task("superresolve", scale=3, filter="bicubic"), superresolution(shape, 3, "bicubic")),
        (Task("superresolve", scale=4), superresolution(shape, 4, "average")),
        (Task("inpaint", mask="random:0.8", seed=5), Inpainting.random(shape, 0.8, 5)),
        (Task("denoise"), Denoising(shape)),
    ]
    for task, operator in pairs:
        assert torch.equal(task.operator(shape).H(x), operator.H(x)), task
    lost = Task("inpaint", mask="random:0.8").operator((3, 100, 100)).known
    assert float(lost.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert torch.equal(lost[0], lost[2])
    assert Task("superresolve", scale=3).restored_shape((1, 4, 5), 3) == (3, 12, 15)
    assert Task("denoise", scale=3).restored_shape((1, 4, 5), 3) == (3, 4, 5)


def test_columns_of_a_report_come_as_in_its_fullest_row(tmp_path):
    """A picture that failed first, whose row is short and in another order, does not move them."""
    rows = [{"error": "no", "name": "a"}, {"name": "b", "seconds": 1, "error": ""}, {"name": "c", "error": "", "z": 2}]
    write_report(tmp_path / "r.csv", rows)
    assert (tmp_path / "r.csv").read_text().splitlines()[0] == "name,seconds,error,z"
