"""Grids and PNG files: where each image lands, and that a file is whole or absent."""

import contextlib
import errno

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.common import pixels as pictures
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.names import VERSION
from ddpm.common.pixels import (
    grey,
    made_by,
    make_grid,
    numbered,
    origin_of,
    origin_text,
    save_grid,
    save_picture,
    to_float,
    to_uint8,
)


def levels(count: int, channels: int = 3, height: int = 5, width: int = 4) -> torch.Tensor:
    """Image i is filled with level i."""
    return to_float(torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, channels, height, width))


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 3), st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_every_image_lands_in_its_cell_and_the_rest_is_white(count, columns, gap, channels):
    grid = make_grid(levels(count, channels), columns, gap)
    used = min(columns, count)
    rows = -(-count // used)
    assert grid.shape == (channels, rows * (5 + gap) + gap, used * (4 + gap) + gap)
    left = grid.clone()
    for index in range(count):
        top, side = gap + index // used * (5 + gap), gap + index % used * (4 + gap)
        assert (grid[:, top : top + 5, side : side + 4] == index).all()
        left[:, top : top + 5, side : side + 4] = 255
    assert (left == 255).all()


def test_a_grid_is_as_square_as_it_can_be():
    assert make_grid(levels(16), gap=0).shape == (3, 20, 16)
    assert make_grid(levels(10), gap=0).shape == (3, 15, 16)
    assert make_grid(levels(1)).shape == (3, 9, 8)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 8, 8)])
def test_what_is_no_batch_of_images(shape):
    with pytest.raises(ValueError, match="a grid is made of images"):
        make_grid(torch.zeros(shape))


def test_values_outside_are_clipped():
    grid = make_grid(torch.tensor([-9.0, 0.0, 9.0]).reshape(3, 1, 1, 1), gap=0, columns=3)
    assert grid.flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_saved_picture_comes_back_to_the_bit(tmp_path, channels):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, 9, 7), dtype=np.uint8))
    path = save_picture(image, tmp_path / "new" / "x.png")
    array = np.array(Image.open(path))
    assert (array.reshape(9, 7, channels) == image.permute(1, 2, 0).numpy()).all()


def test_uint8_and_float_are_inverse_on_every_level():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)


def test_what_is_there_is_kept(tmp_path):
    path = save_grid(levels(4), tmp_path / "x.png")
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists: give another --out"):
        save_grid(levels(9), path)
    with pytest.raises(UserError, match="exists: give another --out"):
        save_picture(torch.zeros(3, 5, 4, dtype=torch.uint8), path)
    assert path.read_bytes() == before
    save_grid(levels(9), path, overwrite=True)
    assert path.read_bytes() != before
    assert [found.name for found in tmp_path.iterdir()] == ["x.png"]


def test_the_same_images_give_the_same_bytes(tmp_path):
    assert (
        save_grid(levels(4), tmp_path / "a.png").read_bytes() == save_grid(levels(4), tmp_path / "b.png").read_bytes()
    )


def test_a_write_that_fails_leaves_the_old_picture(tmp_path, monkeypatch):
    path = save_grid(levels(4), tmp_path / "x.png")
    before = path.read_bytes()

    def full(self, file, **options):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pictures.Image.Image, "save", full)
    with pytest.raises(RunStopped, match="No space left"):
        save_grid(levels(9), path, overwrite=True)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.png"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"should end in \.png"):
        save_grid(levels(1), tmp_path / "x.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_grid(levels(1), tmp_path / "file" / "x.png")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_to_levels_once(dtype):
    """In the format itself (x + 1)·127.5 would be wrong by up to a level: bfloat16 has 8 significant bits."""
    images = torch.linspace(-1, 1, 999).to(dtype)
    assert (to_uint8(images).double() - (images.double() + 1) * 127.5).abs().max() < 0.5 + 1e-4


def test_numbered_pictures_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "9", "000011", "1000000", "999999", "x", "1_compare"):
        save_grid(levels(1), tmp_path / f"{name}.png")
    assert [path.stem for path in numbered(tmp_path)] == ["9", "10", "000011", "999999", "1000000"]


def test_an_origin_is_written_within_its_block_alone():
    assert origin_text() == ""
    with made_by({"command": "outer"}):
        with contextlib.suppress(KeyError), made_by({"command": "inner"}):
            assert origin_text(index=3) == '{"command": "inner", "index": 3}'
            raise KeyError
        assert origin_text() == '{"command": "outer"}'
    assert origin_text() == ""


def test_an_origin_holds_what_is_known():
    assert origin_of("ddpm x", None) == {"command": "ddpm x", "version": VERSION}
    assert origin_of("ddpm x", "abc", images=3) == {
        "command": "ddpm x",
        "version": VERSION,
        "weights": "abc",
        "images": 3,
    }


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (10, 200, 30)])
def test_grey_of_a_colour_is_pillows(colour):
    assert abs(grey(colour) - Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))) <= 1
