"""From a picture, a mask and a kernel to a measurement and its operator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from restoration_cases import settings

from ddpm.common.errors import UserError
from ddpm.common.fidelity import psnr
from ddpm.common.pixels import save_picture, to_float, to_uint8
from ddpm.data.images import read_image
from ddpm.restoration import Task, restore_file
from ddpm.restoration.job import Reader
from ddpm.restoration.operators import from_file
from ddpm.restoration.tasks import lost_pixels, marked, read_picture


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


@pytest.mark.parametrize("size", [(1, 12), (12, 1), (2, 1)])
def test_a_mask_may_be_as_small_as_its_picture_and_must_have_its_size(tmp_path, size):
    mask = np.zeros(size, np.uint8)
    mask.flat[0] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    task = Task("inpaint", mask=str(tmp_path / "mask.png"))
    image = 1 + torch.arange(float(mask.size)).reshape(1, 1, *size)
    expected = image.clone()
    expected.flatten()[0] = 0
    assert torch.equal(task.operator((1, *size)).H(image).float(), expected)
    assert read_picture(tmp_path / "mask.png", 1).shape == (1, *size)
    with pytest.raises(UserError, match=f"the mask is {size[0]}×{size[1]}, the image 1×12×12: they must agree"):
        task.operator((1, 12, 12))  # not repeated over the other rows


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


def mask_of(grey: list[list[int]], alpha: list[list[int]]) -> torch.Tensor:
    return torch.tensor([grey, alpha], dtype=torch.uint8)


def test_marked_pixels_begin_at_half_of_the_levels():
    """White ones of an opaque mask; opaque ones, of any colour, of a mask with transparency."""
    white = mask_of([[0, 127, 128, 255]], [[255] * 4])
    assert marked(white).tolist() == [[False, False, True, True]]
    painted = mask_of([[0, 255, 0, 255]], [[127, 127, 128, 255]])
    assert marked(painted).tolist() == [[False, False, True, True]]
    almost = mask_of([[0, 200, 0, 0]], [[255, 255, 255, 254]])
    assert marked(almost).all()  # one pixel that is not quite opaque makes it a mask with transparency


@pytest.mark.parametrize(("opaque", "spread", "erased"), [(9, 7, True), (9, 6, False), (8, 7, False), (15, 7, True)])
def test_picture_with_an_erased_part_is_told_from_a_painted_mask(opaque, spread, erased):
    """More than half is opaque, with many grey values; `spread` + 1 is their standard deviation."""
    grey = torch.full((16,), 100)
    count = opaque // 2
    grey[:count], grey[count : 2 * count] = 100 - spread - 1, 100 + spread + 1
    solid = torch.arange(16) < opaque
    for levels in ((255, 0), (128, 127)):
        alpha = torch.where(solid, *levels)
        lost = lost_pixels(torch.stack([grey, alpha]).reshape(2, 4, 4).to(torch.uint8)).flatten()
        assert torch.equal(lost, ~solid if erased else solid)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_to_restore_may_be_of_any_size(tmp_path, channels):
    """A picture for superresolution can be smaller than any that a network is trained on."""
    picture = torch.tensor([[10, 20, 30], [40, 50, 255]], dtype=torch.uint8).expand(3, 2, 3)
    save_picture(picture, tmp_path / "small.png")
    assert torch.equal(to_uint8(read_picture(tmp_path / "small.png", channels)), picture[:channels])


def test_tint_of_a_scan_may_reach_sixteen_levels_in_one_percent_of_the_pixels(tmp_path):
    """A level more, or one pixel more, and it is a colour picture."""
    for tint, pixels, taken in ((15, 400, True), (16, 4, True), (16, 5, False)):
        scan = torch.full((3, 20, 20), 120, dtype=torch.uint8)
        scan.view(3, -1)[1, :pixels] += tint
        save_picture(scan, tmp_path / "scan.png", overwrite=True)
        if taken:
            assert read_picture(tmp_path / "scan.png", 1).shape == (1, 20, 20)
        else:
            with pytest.raises(UserError, match="colour picture"):
                read_picture(tmp_path / "scan.png", 1)
    assert read_picture(tmp_path / "scan.png", 1, toned=True).shape == (1, 20, 20)
