"""Uploads, and what a press of a button does, without Gradio."""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ddpm.app import press
from ddpm.app.components import address, cells, sheet
from ddpm.app.outcome import origin
from ddpm.app.press import live, stop_all
from ddpm.app.uploads import from_pad, mask_of, read_address, read_fitted, read_mask, read_upload
from ddpm.common.errors import UserError
from ddpm.common.pixels import made_by, save_grid, to_uint8
from ddpm.samplers.algorithms import Step


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken.png", "the upload cannot be used: it is not an image"),
        ("huge.png", "10000x10000 is more than"),
        ("heavy.png", "it is larger than 20 MB"),
        ("missing.png", "No such file"),
    ],
)
def test_a_bad_upload_is_refused_in_one_line(uploads, name, said):
    with pytest.raises(UserError, match=said) as caught:
        read_upload(str(uploads / name), 3)
    assert "\n" not in str(caught.value)
    assert str(uploads) not in str(caught.value)


def test_no_upload_is_said_so():
    with pytest.raises(UserError, match="draw one, open a file"):
        read_upload(None, 3)


def test_animation_gives_its_first_frame_and_alpha_is_flattened_on_white(uploads):
    assert read_upload(str(uploads / "animated.gif"), 3).size == (20, 20)
    assert read_upload(str(uploads / "alpha.png"), 3).getpixel((0, 0)) == (255, 255, 255)


def test_uploads_are_cropped_to_the_model(uploads):
    assert read_fitted(str(uploads / "good.png"), (1, 16, 16)).shape == (1, 16, 16)


def test_a_mask_is_what_is_painted_or_else_what_is_white(tmp_path, uploads):
    painted = np.zeros((320, 320, 4), np.uint8)
    painted[:160, :, :] = (213, 94, 0, 255)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    upper = torch.arange(16)[:, None].expand(16, 16) < 8
    right = torch.arange(16).expand(16, 16) >= 8
    assert torch.equal(read_mask([str(tmp_path / "painted.png")], (16, 16)), upper)
    assert torch.equal(read_mask([str(uploads / "mask.png")], (16, 16)), right)
    assert torch.equal(read_mask([(tmp_path / "painted.png").read_bytes(), str(uploads / "mask.png")], (16, 16)),
                       upper | right)  # fmt: skip
    assert not read_mask([], (16, 16)).any()


def test_a_pad_brings_a_picture_and_a_mask_unless_a_program_sends_files(uploads):
    picture, mask = (address(Image.open(uploads / f"{name}.png")) for name in ("good", "mask"))
    pad = json.dumps({"image": picture, "mask": mask})
    with Image.open(io.BytesIO(from_pad(pad))) as drawn, Image.open(uploads / "good.png") as original:
        assert np.array_equal(drawn, original)
    assert torch.equal(read_mask(mask_of(pad), (16, 16)), torch.arange(16).expand(16, 16) >= 8)
    assert from_pad(pad, "sent.png") == "sent.png"
    assert mask_of(pad, "sent.png") == ["sent.png"]
    assert from_pad(None) is from_pad("") is from_pad('{"image": ""}') is None
    assert mask_of(None) == []


@pytest.mark.parametrize("pad", ["[]", "3", "{", '{"image": "http://192.0.2.1/a.png"}', '{"image": 3}'])
def test_a_pad_that_holds_something_else_is_refused(pad):
    with pytest.raises(UserError, match=r"pad|not an image"):
        from_pad(pad)


@pytest.mark.parametrize("text", ["", "http://192.0.2.1/a.png", "data:image/png;base64,?", "file:///etc/passwd"])
def test_only_data_is_read_from_an_address(text):
    with pytest.raises(UserError, match="not an image"):
        read_address(text)


def test_a_sheet_has_gaps_that_one_sees_through():
    images = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    with Image.open(io.BytesIO(read_address(sheet(images, 3)))) as picture:
        grey, alpha = np.moveaxis(np.asarray(picture), 2, 0)
    inside = np.zeros((4, 10), bool)
    for left in (1, 4, 7):
        inside[1:3, left : left + 2] = True
    assert (alpha == np.where(inside, 255, 0)).all()
    assert grey[1, [1, 4, 7]].tolist() == [0, 128, 255]


def test_a_grid_gives_its_images_and_no_other_picture_is_taken_for_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 16, 12, generator=generator) * 1.8 - 1
    save_grid(images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        found = cells(grid, 12, 16)
        assert np.array_equal([np.asarray(image) for image in found], to_uint8(images)[:, 0])
        assert cells(grid, 16, 12) == []
        assert cells(grid.transpose(Image.Transpose.ROTATE_90).resize(grid.size), 12, 16) == []  # no white border
    assert cells(Image.new("L", (16, 20)), 12, 16) == []  # one image with a border


def test_a_file_that_the_page_wrote_gives_its_options_and_any_other_nothing(tmp_path):
    images, given = torch.zeros(2, 1, 8, 8), {"options": {"seed": 7}, "images": 2}

    def told(content: bytes) -> dict:
        return origin("data:;base64," + base64.b64encode(content).decode())

    def png(text: str) -> bytes:
        chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        chunks.add_text("ddpm", text)
        Image.new("L", (8, 8)).save(buffer, format="png", pnginfo=chunks)
        return buffer.getvalue()

    with made_by({"command": "ddpm sample", **given}):
        save_grid(images, tmp_path / "grid.png")
    assert told((tmp_path / "grid.png").read_bytes()) == given
    save_grid(images, tmp_path / "plain.png")
    nested, no_zip = png("[" * 100_000), b"PK\1\2" + bytes(42) + b"PK\5\6" + bytes([0, 0, 0, 0, 9, 0, 9, 0]) + bytes(10)
    for content in ((tmp_path / "plain.png").read_bytes(), png("[]"), png("{}"), nested, no_zip, b"words", b""):
        assert told(content) == {}
    assert origin("http://192.0.2.1/a.png") == {}


def long_work(ended: threading.Event):
    """Ten seconds of steps; sets `ended` however it ends."""

    def work(callback):
        try:
            for index in range(10_000):
                time.sleep(0.001)
                callback(Step(index, 10_000, 0.0, 0.0, *[torch.zeros(1)] * 3))
        finally:
            ended.set()

    return work


def test_closing_the_iterator_ends_the_work():
    done = threading.Event()
    steps = live(long_work(done))
    assert isinstance(next(steps), Step)
    steps.close()
    assert done.wait(5)


def test_stop_ends_the_handler_of_its_press_and_no_other():
    ended = threading.Event()

    def handler(number):
        for event in live(long_work(ended)):
            yield f"at {event.index}", number

    run = press.until_stopped(handler)
    first = run(2.0**40, "one")
    shown = [next(first)]
    press.stop_press(2.0**40)
    *shown, last_values = [*shown, *first]
    step = int(shown[-1][0].removeprefix("at "))  # the page counts from 1
    assert last_values == [f"Stopped at step {step + 1} of 10000.", "one"]
    assert ended.wait(5)
    waiting = list(run(2.0**40, "never begun"))
    assert waiting == [press.gr.skip()]
    assert list(run(-1, "nothing to run")) == [press.gr.skip()]
    other = run(2.0**40 + 1, "other")
    assert [next(other)[1] for _ in range(3)] == ["other"] * 3
    other.close()


def test_all_work_can_be_stopped_and_none_keeps_the_interpreter_alive():
    """Ctrl-C in the terminal while somebody draws: the server must not wait for a thousand steps."""

    def work(callback):
        for index in range(100_000):
            time.sleep(0.001)
            callback(Step(index, 100_000, 0.0, 0.0, *[torch.zeros(1)] * 3))

    steps = live(work)
    next(steps)
    mine = [thread for thread in threading.enumerate() if thread.name == "sampling"]
    assert mine
    assert all(thread.daemon for thread in mine)
    stop_all(30)
    assert not any(thread.is_alive() for thread in mine)
    steps.close()


def test_an_error_in_the_work_reaches_the_reader():
    def work(callback):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        list(live(work))
