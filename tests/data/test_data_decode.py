"""Every kind of pixel, against what its definition says it should become."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data import read_image
from ddpm.data.images import MOST_FILE_BYTES, BrokenFile, decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest undoes the package's own filter
ORIENTATION = 0x0112


def planes(data: bytes, channels: int = 3, background=255) -> np.ndarray:
    """int (H, W) or (H, W, C) of the decoded image."""
    return np.asarray(decode(data, channels, background)).astype(int)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_decode_keeps_colour(pixels, encode, format):
    array = pixels(channels=3)
    options = {"lossless": True} if format == "WEBP" else {}
    assert (planes(encode(array, format, **options)) == array).all()


def test_read_image_gives_channels_first(tmp_path, pixels, encode):
    array = pixels(height=10, width=14)
    (tmp_path / "x.png").write_bytes(encode(array))
    image = read_image(tmp_path / "x.png")
    assert image.dtype == torch.uint8
    assert image.shape == (3, 10, 14)
    assert (image.permute(1, 2, 0).numpy() == array).all()
    assert read_image(str(tmp_path / "x.png"), channels=1).shape == (1, 10, 14)


def test_decode_repeats_grey_in_three_channels(pixels, encode):
    array = pixels(channels=1)
    assert (planes(encode(array)) == array[..., None]).all()


def test_decode_converts_colour_to_luma(pixels, encode):
    array = pixels(channels=3)
    luma = array @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(planes(encode(array), channels=1) - luma).max() <= 1


def test_decode_keeps_grey_that_is_stored_in_colour(pixels, encode):
    grey = pixels(channels=1)
    assert np.abs(planes(encode(np.stack([grey] * 3, -1)), channels=1) - grey).max() <= 1


@pytest.mark.parametrize("background", [255, 0, 128, [10, 200, 90]])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_flattens_alpha_on_the_background(pixels, encode, mode, background):
    array = pixels(channels=len(mode))
    colour, alpha = array[..., :-1].astype(float), array[..., -1:] / 255
    expected = colour * alpha + np.broadcast_to(background, 3) * (1 - alpha)
    assert np.abs(planes(encode(array), background=background) - expected).max() <= 1


def test_decode_keeps_alpha_if_there_is_a_channel_for_it(pixels, encode):
    array = pixels(channels=4)
    assert (planes(encode(array), channels=4) == array).all()
    assert (planes(encode(array[..., [0, 3]]), channels=2) == array[..., [0, 3]]).all()
    opaque = planes(encode(array[..., :3]), channels=4)
    assert (opaque[..., 3] == 255).all()
    assert (opaque[..., :3] == array[..., :3]).all()


def test_decode_applies_the_palette(encode):
    rng = np.random.default_rng(0)
    palette, index = rng.integers(0, 256, (256, 3), dtype=np.uint8), rng.integers(0, 256, (12, 9), dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    assert (planes(encode(image)) == palette[index]).all()


def test_decode_shows_the_background_behind_transparent_palette_entries(encode):
    index = np.arange(64, dtype=np.uint8).reshape(8, 8)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    expected = palette[index].astype(int)
    expected[index == 7] = [1, 2, 3]
    assert (planes(encode(image, transparency=7), background=[1, 2, 3]) == expected).all()


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_decode_converts_cmyk(encode, format):
    c, m, y, k = (np.full((16, 16), value, np.uint8) for value in (200, 40, 90, 30))
    image = Image.merge("CMYK", [Image.fromarray(plane) for plane in (c, m, y, k)])
    expected = [(255 - ink) * (255 - 30) / 255 for ink in (200, 40, 90)]
    tolerance = 1 if format == "TIFF" else 3
    assert (
        np.abs(planes(encode(image, format, **({"quality": 98} if format == "JPEG" else {}))) - expected).max()
        <= tolerance
    )


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_decode_scales_16_bit_grey(encode, format):
    values = np.random.default_rng(0).integers(0, 65536, (12, 12)).astype(np.uint16)
    values[0, :2] = 0, 65535
    expected = np.round(values / 257).astype(int)
    # older Pillow writes 16 bits as PPM from int32 alone
    image = Image.fromarray(values.astype(np.int32) if format == "PPM" else values)
    assert (planes(encode(image, format), channels=1) == expected).all()
    assert (planes(encode(image, format), channels=3) == expected[..., None]).all()


def test_decode_scales_16_bit_colour(png):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    assert np.abs(planes(png(8, 8, 16, 2, rows)) - values / 257).max() <= 1


def test_decode_scales_1_bit(encode):
    array = np.random.default_rng(0).integers(0, 2, (9, 11)).astype(bool)
    assert (planes(encode(Image.fromarray(array)), channels=1) == array * 255).all()


def test_decode_scales_floats_in_0_to_1_and_refuses_others(encode):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert (planes(encode(Image.fromarray(values), "TIFF"), channels=1) == np.round(values * 255)).all()
    for bad in (values * 2, values - 1, np.full((8, 8), np.nan, np.float32)):
        with pytest.raises(BrokenFile, match="floating-point"):
            decode(encode(Image.fromarray(bad), "TIFF"), 1)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [  # what has to be done to the stored rows, from the EXIF standard's "row 0 is the visual …, column 0 the visual …"
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: a.swapaxes(0, 1)[:, ::-1]),
        (7, lambda a: a.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda a: a.swapaxes(0, 1)[::-1]),
        (9, lambda a: a),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_decode_applies_the_exif_orientation(pixels, encode, orientation, upright, format):
    array = pixels(height=9, width=13)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(array, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    assert (planes(data) == upright(array)).all()


def test_decode_ignores_damaged_exif(pixels, encode):
    array = pixels()
    data = encode(array, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert (planes(data) == array).all()


def test_decode_takes_the_first_frame_of_an_animation(encode):
    frames = [Image.fromarray(np.full((10, 10), level, np.uint8)) for level in (30, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (planes(data, channels=1) == 30).all()


def test_decode_refuses_sides_under_8_pixels(encode, pixels):
    with pytest.raises(BrokenFile, match="7x20 is smaller than 8"):
        decode(encode(pixels(height=20, width=7)), 3)
    decode(encode(pixels(height=8, width=8)), 3)


def test_decode_refuses_a_decompression_bomb_by_its_header(png):
    bomb = png(60_000, 60_000, 8, 2, b"\0" * 1000)
    tracemalloc.start()
    with pytest.raises(BrokenFile, match="pixels"):
        decode(bomb, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_read_image_names_files_that_are_not_images(tmp_path):
    for name, content in {"text.png": b"hello", "empty.png": b"", "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_image(path)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(500)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jpg", HEIC, "it is a HEIC picture under the name .jpg: convert it to JPEG or PNG"),
        ("b.PNG", AVIF, "it is an AVIF picture under the name .png: convert it to JPEG or PNG"),
        ("c.webp", JXL, "it is a JPEG XL picture under the name .webp: convert it to JPEG or PNG"),
        ("d.heic", HEIC, "it is a HEIC picture: convert it to JPEG or PNG"),
    ],
)
def test_read_image_names_a_format_that_is_not_read(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} cannot be used as an image: {message}$"):
        read_image(tmp_path / name)


def test_decode_refuses_huge_files():
    with pytest.raises(BrokenFile, match="larger"):
        decode(bytes(MOST_FILE_BYTES + 1), 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_decode_refuses_truncated_files(pixels, encode, format):
    data = encode(pixels(height=64, width=64), format)
    with pytest.raises(BrokenFile):
        decode(data[: len(data) // 3], 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
def test_decode_raises_only_broken_file_for_damaged_files(pixels, encode, data, format):
    file = bytearray(encode(pixels(height=12, width=12), format))
    for place in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=6)):
        file[place] = data.draw(st.integers(0, 255))
    del file[data.draw(st.integers(0, len(file))) :]
    try:
        image = decode(bytes(file), data.draw(st.integers(1, 4)))
    except BrokenFile:
        return
    assert min(image.size) >= 8


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_decode_raises_only_broken_file_for_any_bytes(data):
    with pytest.raises(BrokenFile):
        decode(data, 3)
