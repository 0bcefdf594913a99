"""What is behind the Generate tab."""

import html
import json
import re
import shlex
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.app import generate
from ddpm.app.components import examples
from ddpm.app.page import describe
from ddpm.cli import run as command_line
from ddpm.common.errors import UserError
from ddpm.model import load
from ddpm.samplers.algorithms import Step


def last(iterator):
    *_, answer = iterator
    return answer


def test_what_is_drawn_is_what_the_model_draws(served_model, tmp_path):
    settings = generate.Settings("class 1", "ddim", 4, 1.5, 3, 5)
    events = list(generate.sample_live(served_model, settings))
    assert all(isinstance(event, Step) for event in events[:-1])
    expected = served_model.sample(5, sampler="ddim", steps=4, labels=1, guidance=1.5, seed=3, batch_size=5)
    assert torch.equal(events[-1].images, expected)
    grid, singles, gif, array = events[-1].save(tmp_path)
    with zipfile.ZipFile(singles) as archive:
        assert archive.namelist() == [f"{index:06d}.png" for index in range(5)]
        pictures = [np.asarray(Image.open(archive.open(name))) for name in archive.namelist()]
    assert np.array_equal(pictures, np.load(array)["arr_0"][..., 0])
    assert np.load(array)["arr_0"].shape == (5, 16, 16, 1)
    moments = json.loads(html.unescape(re.search('data-frames="(.*?)"', generate.steps_of(events[-1]))[1]))
    assert [len(moment["pictures"]) for moment in moments] == [2] * 5  # x_t and what it was expected to become
    with Image.open(gif) as animation:
        assert animation.n_frames == 5  # 4 steps and the end
    assert Image.open(grid).size == (3 * 18 + 2, 2 * 18 + 2)


@pytest.mark.parametrize(
    "settings", [generate.Settings("class 2", "dpm++", 3, 2.0, 7, 3), generate.Settings(number=16)]
)
def test_the_equivalents_draw_the_same(served_model, tmp_path, monkeypatch, settings):
    served_model.save(tmp_path / "a model")
    monkeypatch.chdir(tmp_path)
    options = settings.options(served_model)
    grid, *_ = last(generate.sample_live(served_model, settings)).save(tmp_path)
    wanted = np.asarray(Image.open(grid))
    words = shlex.split(generate.as_command("a model", options).replace("\\\n", ""))
    assert command_line([*words[1:], "--overwrite"]) == 0
    assert np.array_equal(Image.open("samples.png"), wanted)
    (tmp_path / "samples.png").unlink()
    exec(generate.as_python("a model", options), {})
    assert np.array_equal(Image.open("samples.png"), wanted)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (generate.Settings(number=65), "number of images must be a whole number from 1 to 64"),
        (generate.Settings(number=0), "number of images"),
        (generate.Settings(steps=1001), "number of steps must be a whole number from 1 to 1000"),
        (generate.Settings(seed=-1), "the seed"),
        (generate.Settings(seed=None), "the seed must be a whole number from 0 to 9007199254740991, not empty"),
        (generate.Settings(sampler="dpm"), "no sampler named 'dpm'"),
        (generate.Settings(label="class 9"), "no class 'class 9'"),
    ],
)
def test_what_is_out_of_bounds_is_refused(served_model, settings, said):
    with pytest.raises(UserError, match=said):
        last(generate.sample_live(served_model, settings))


def test_a_model_without_classes_refuses_a_class(plain_model):
    assert last(generate.sample_live(plain_model, generate.Settings(number=2, steps=2))).images.shape == (2, 1, 16, 16)
    with pytest.raises(UserError, match="trained without classes"):
        last(generate.sample_live(plain_model, generate.Settings("class 1")))


def test_a_gallery_names_every_image(served_model):
    settings = generate.Settings(number=5, seed=3)
    names = generate.class_names(served_model, settings)
    assert names == ["class 0", "class 1", "class 2", "class 0", "class 1"]
    html = generate.tiles(torch.zeros(5, 1, 16, 16), names, settings)
    assert re.findall('data-caption="(.*?)"', html)[3] == "image 3, class class 0, seed 3"
    assert "&lt;b&gt;" in generate.tiles(torch.zeros(1, 1, 16, 16), ["<b>"], settings)
    assert generate.class_names(served_model, generate.Settings("class 2", number=2)) == ["class 2"] * 2


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (2, 2), (7, 3), (10, 5), (12, 4), (16, 4), (20, 5), (64, 8)])
def test_a_gallery_has_full_rows_where_it_can(number, columns):
    assert generate.columns(number) == columns


def test_the_page_begins_with_a_drawing_only_if_that_is_quick(served_model):
    usual = generate.usual(served_model)
    assert generate.is_quick(served_model, usual)
    assert not generate.is_quick(served_model, replace(usual, steps=10**9))


def test_a_slower_model_begins_with_fewer_images(served_model, monkeypatch):
    own = generate.count_flops(served_model.network) * generate.usual(served_model).steps
    monkeypatch.setattr(generate, "QUICK_FLOPS", 5 * own)
    assert generate.usual(served_model).number == 4
    monkeypatch.setattr(generate, "QUICK_FLOPS", own / 2)
    assert generate.usual(served_model).number == 16  # when the visitor asks for them


def test_only_a_model_of_digits_is_said_to_draw_digits():
    digits, blank = load("digits"), load("digits")
    assert "handwritten digits" in describe(digits)
    blank.provenance = {"config": {"data": {"source": "/pictures/signs"}}}
    assert "28×28 grey images of 10 classes (0, 1," in describe(blank)
    assert examples(digits)
    assert not examples(blank)


def test_guidance_suits_the_model(served_model, plain_model, strict_model):
    assert generate.usual(served_model).guidance > 1
    assert generate.usual(plain_model).guidance == generate.usual(strict_model).guidance == 1
