"""Bringing images to one size: the aspect is kept, nothing is shifted, padding has the colour asked for."""

import contextlib
import tarfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ddpm.data import open_dataset
from ddpm.data.images import resize_to

sides = st.integers(8, 60)


def gradient(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x = np.linspace(0, 255, width)[None].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, x * 0], -1).round().astype(np.uint8))


@given(sides, sides, sides, sides, st.sampled_from(["crop", "pad"]), st.sampled_from(["L", "LA", "RGB", "RGBA"]))
@example(36, 57, 8, 13, "crop", "L")  # the window's edge lay at -3.6e-15
@settings(max_examples=200, deadline=None)
def test_resize_to_gives_the_exact_size(height, width, to_height, to_width, how, mode):
    out = resize_to(Image.new(mode, (width, height)), (to_height, to_width), how)
    assert out.size == (to_width, to_height)
    assert out.mode == mode


@given(sides, sides)
@settings(max_examples=20, deadline=None)
def test_resize_to_returns_an_image_of_the_right_size_as_it_is(height, width):
    image = gradient(height, width)
    assert resize_to(image, (height, width), "crop") is image
    assert resize_to(image, (height, width), "pad") is image


def test_resize_to_crop_keeps_the_middle():
    """A 40x20 image whose outer quarters are red, to a square: no red is left but at the resampling's edge."""
    array = np.zeros((20, 40, 3), np.uint8)
    array[:, 10:30] = [0, 255, 0]
    array[:, :10] = array[:, 30:] = [255, 0, 0]
    out = np.asarray(resize_to(Image.fromarray(array), (20, 20), "crop"))
    assert (out == [0, 255, 0]).all()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (37, 53)])
def test_resize_to_crop_agrees_with_pillow(height, width):
    image = gradient(height, width)
    ours, theirs = resize_to(image, (16, 24), "crop"), ImageOps.fit(image, (24, 16), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (37, 53)])
def test_resize_to_pad_agrees_with_pillow(height, width):
    image = gradient(height, width)
    ours = resize_to(image, (32, 32), "pad", background=[9, 8, 7])
    theirs = ImageOps.pad(image, (32, 32), Image.Resampling.BICUBIC, color=(9, 8, 7))
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    assert (difference.max(axis=-1) > 40).mean() <= 2 / 32  # where to put an odd pixel of padding is free


def test_resize_to_pads_with_the_background_or_transparency():
    wide = Image.new("RGB", (32, 16), (50, 60, 70))
    out = np.asarray(resize_to(wide, (32, 32), "pad", background=[1, 2, 3]))
    assert (out[:8] == [1, 2, 3]).all()
    assert (out[24:] == [1, 2, 3]).all()
    assert (out[8:24] == [50, 60, 70]).all()
    clear = np.asarray(resize_to(Image.new("RGBA", (32, 16), (50, 60, 70, 255)), (32, 32), "pad"))
    assert (clear[:8, :, 3] == 0).all()
    assert (np.asarray(resize_to(Image.new("L", (32, 16), 5), (32, 32), "pad", background=77))[:8] == 77).all()
    luma = np.asarray(Image.new("RGB", (1, 1), (250, 20, 90)).convert("L"))  # by Pillow
    grey = np.asarray(resize_to(Image.new("L", (32, 16), 5), (32, 32), "pad", background=[250, 20, 90]))
    assert (grey[:8] == luma[0, 0]).all()


@pytest.mark.parametrize(("width", "height"), [(1000, 2), (2, 1000)])
def test_resize_to_pads_the_thinnest_picture_to_one_line(width, height):
    """It would be a hundredth of a pixel thin; one line in the middle is left of it, and never two."""
    out = np.asarray(resize_to(Image.new("L", (width, height), 200), (9, 9), "pad", background=0))
    lines = out if width > height else out.T
    assert (lines[4] == 200).all()
    assert (np.delete(lines, 4, axis=0) == 0).all()


def test_resize_to_keeps_the_aspect_ratio():
    y, x = np.mgrid[:60, :90]
    disc = Image.fromarray((((x - 44.5) ** 2 + (y - 29.5) ** 2 < 20**2) * 255).astype(np.uint8))
    for how in ("crop", "pad"):
        out = np.asarray(resize_to(disc, (48, 48), how, background=0)) > 127
        tall, wide = out.any(axis=1).sum(), out.any(axis=0).sum()
        assert abs(int(tall) - int(wide)) <= 1


def test_resize_to_does_not_alias():
    """A fine checkerboard shrinks to its mean, not to black or white."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    out = np.asarray(resize_to(Image.fromarray(board), (16, 16), "crop"))
    assert np.abs(out.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("way", ["memory", "lazy", "stream"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_every_way_to_open_pictures_fits_them_and_fills_them_with_the_background(tmp_path, monkeypatch, way, fit):
    """A picture twice as wide as high whose left half is transparent: both kinds of background are the one given."""
    pixels = np.zeros((16, 32, 4), np.uint8)
    pixels[:, 16:] = 200, 100, 50, 255
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "0.png")
    if way == "lazy":
        monkeypatch.setattr("ddpm.data.datasets.MOST_MEMORY_BYTES", 1)
    if way == "stream":
        with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
            tar.add(folder / "0.png", "0.png")
    source = tmp_path / "pictures.tar" if way == "stream" else folder
    options = {"image_size": 16, "channels": 3, "fit": fit, "background": [9, 80, 250], "streaming": way == "stream"}
    with contextlib.closing(open_dataset(str(source), **options)) as dataset:
        (image,) = dataset.draw(0, range(1))[0].permute(0, 2, 3, 1).tolist()
    shown = range(4, 12) if fit == "pad" else range(16)
    for row in range(16):
        for column in (*range(5), *range(11, 16)):  # those in the middle are mixed
            expected = [200, 100, 50] if row in shown and column > 8 else [9, 80, 250]
            if row not in (3, 4, 11, 12):
                assert image[row][column] == pytest.approx(expected, abs=3), (row, column)
