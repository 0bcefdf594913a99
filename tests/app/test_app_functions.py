"""What is behind the tabs, without Gradio."""

import io
import json
import os
import re
import shlex
import socket
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.app import compare, edit, explore, figures, generate, models, press, runs, training
from ddpm.app import restore as restoring
from ddpm.app.components import address, film, sheet
from ddpm.app.press import live, stop_all
from ddpm.app.uploads import from_pad, mask_of, read_address, read_fitted, read_mask, read_upload
from ddpm.cli import run as command_line
from ddpm.common.errors import UserError
from ddpm.common.pixels import make_grid, to_pillow, to_uint8
from ddpm.editing import Editor, fidelity_curve, translate
from ddpm.model import BUNDLED
from ddpm.restoration import Restored
from ddpm.samplers.algorithms import Step


def last(iterator):
    *_, answer = iterator
    return answer


# uploads


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
    with pytest.raises(UserError, match="choose an image"):
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


# live


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
            yield f"step {event.index}", number

    run = press.until_stopped(handler)
    first = run(2.0**40, "one")
    assert next(first)[1] == "one"
    press.stop_press(2.0**40)
    *_, last_values = first
    assert last_values == ["Stopped.", "one"]
    assert ended.wait(5)
    waiting = list(run(2.0**40, "never begun"))
    assert waiting == [press.gr.skip()]
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


# generate


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
    assert generate.steps_of(events[-1]).count("predicted x") == 2  # its alternative text and its caption
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


def test_guidance_suits_the_model(served_model, plain_model, strict_model):
    assert generate.usual(served_model).guidance > 1
    assert generate.usual(plain_model).guidance == generate.usual(strict_model).guidance == 1


# restore


@pytest.mark.parametrize("kind", restoring.KINDS[:-1])
@pytest.mark.parametrize("clean", [True, False])
def test_every_damage_is_restored(served_model, uploads, kind, clean):
    damage = restoring.Damage(kind, noise=0.1)
    answer = last(restoring.restore_upload(served_model, str(uploads / "good.png"), None, damage, clean=clean, steps=2))
    pictures = answer.pictures()
    assert pictures["mean"].size == pictures["one draw"].size == pictures["uncertainty"].size == (16, 16) or not clean
    assert answer.report().startswith("Mean of 4 draws.")
    assert ("PSNR" in answer.report()) == clean
    assert ("original" in pictures) == clean


@pytest.mark.parametrize("clean", [True, False])
def test_the_rounding_of_a_blurred_upload_is_taken_for_noise(served_model, uploads, clean):
    blur = restoring.Damage(restoring.BLUR, blur=1.5)
    answer = last(restoring.restore_upload(served_model, str(uploads / "good.png"), None, blur, clean=clean, steps=2))
    assert ("σ is taken as 0.0011" in answer.report()) != clean


def test_only_the_painted_part_changes(served_model, uploads):
    lost = torch.arange(16).expand(16, 16) >= 8
    picture = str(uploads / "good.png")
    answer = last(restoring.restore_upload(served_model, picture, lost, restoring.Damage(), steps=3))
    before, after = (np.asarray(answer.pictures()[view]).astype(int) for view in ("before", "mean"))
    assert np.abs(before[:, :8] - after[:, :8]).max() <= 1
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 20
    assert answer.spread[:, :8].max() <= answer.spread[:, 8:].min() + 0.01


def test_no_uncertainty_is_black_and_much_is_light():
    """On a fixed scale: a map that is scaled to its own maximum would glow where nothing is uncertain."""
    assert np.asarray(restoring.heat(torch.full((4, 4), 1e-4))).max() < 8
    assert np.asarray(restoring.heat(torch.full((4, 4), 0.25))).min() > 150
    assert np.array_equal(restoring.heat(torch.full((4, 4), 0.25)), restoring.heat(torch.full((4, 4), 0.4)))


@pytest.mark.parametrize("kind", restoring.USUAL_NOISE)
def test_a_damage_begins_with_something_to_restore(kind):
    assert restoring.USUAL_NOISE[kind] > 0


def test_noise_of_nothing_is_said_so(served_model, uploads):
    with pytest.raises(UserError, match="nothing to restore"):
        restoring.restore_upload(served_model, str(uploads / "good.png"), None, restoring.Damage(restoring.NOISE))


@pytest.mark.parametrize("kind", [restoring.PAINTED, *restoring.KINDS[:-1]])
def test_the_command_and_the_program_restore_the_same(served_model, uploads, tmp_path, monkeypatch, kind):
    served_model.save(tmp_path / "a model")
    monkeypatch.chdir(tmp_path)
    damage = restoring.Damage(kind, noise=0.1, scale=2)
    lost = torch.arange(16).expand(16, 16) >= 8 if kind == restoring.PAINTED else None
    source = str(uploads / "good.png")
    answer = last(restoring.restore_upload(served_model, source, lost, damage, steps=3, draws=2, seed=4))
    with zipfile.ZipFile(answer.save(tmp_path / "restored.zip", read_fitted(source, (1, 16, 16)), lost)) as archive:
        archive.extractall(tmp_path)
    options = {"method": "ddnm", "noise": 0.1, "samples": 2, "steps": 3, "seed": 4, "batch_size": 2}
    words = shlex.split(restoring.as_command("a model", damage, options, True).replace("\\\n", ""))
    assert command_line(words[1:]) == 0
    restored = np.asarray(Image.open("restored.png"))
    assert np.array_equal(restored, Image.open("mean.png"))
    for name in ("restored.png", "restored_compare.png", "restored_samples.png", "restored_std.png"):
        Path(name).unlink()
    exec(restoring.as_python("a model", damage, options, True), {})
    assert np.array_equal(restored, Image.open("restored.png"))


def test_an_upload_is_restored_as_its_class(strict_model, uploads):
    def restored(label):
        picture, damage = str(uploads / "good.png"), restoring.Damage(restoring.RANDOM)
        events = restoring.restore_upload(strict_model, picture, None, damage, steps=3, label=label)
        return np.asarray(last(events).pictures()["mean"])

    assert not np.array_equal(restored("class 0"), restored("class 1"))
    with pytest.raises(UserError, match="needs labels"):
        restored("no class")


def test_what_is_left_is_judged_as_it_is_seen():
    """Noise leaves [-1, 1], and no picture does."""
    white = torch.ones(1, 16, 16)
    answer = restoring.Answer(3 * white, Restored(torch.zeros(1, 2, 1, 16, 16)), white)
    assert answer.report().endswith("before inf dB.")


def test_nothing_painted_is_said_so(served_model, uploads):
    with pytest.raises(UserError, match="no pixels are marked"):
        restoring.restore_upload(served_model, str(uploads / "good.png"), None, restoring.Damage())


def test_colour_is_offered_only_where_there_is_some(served_model):
    assert restoring.GREY not in restoring.damages(served_model)


# edit


@pytest.fixture(scope="module")
def picture(uploads):
    return read_fitted(str(uploads / "good.png"), (1, 16, 16))


def test_strength_0_keeps_the_upload_and_1_does_not(served_model, picture):
    kept = last(edit.edit_upload(served_model, picture, 0.0, edit.Settings()))
    assert torch.equal(kept, picture)
    assert "PSNR inf" in edit.report_edit(kept, picture, "kept")
    *steps, changed = edit.edit_upload(served_model, picture, 1.0, edit.Settings("class 0", steps=4))
    assert all(isinstance(step, Step) for step in steps)
    assert not torch.equal(changed, picture)


def test_guidance_changes_an_edit_and_needs_a_class(served_model, picture):
    edited = [
        last(edit.edit_upload(served_model, picture, 1.0, edit.Settings(label, guidance, steps=4)))
        for label, guidance in (("class 0", 1.0), ("class 0", 4.0), ("no class", 1.0), ("no class", 4.0))
    ]
    assert not torch.equal(edited[0], edited[1])
    assert torch.equal(edited[2], edited[3])


def test_every_strength_gives_what_the_editor_gives(served_model, picture):
    *steps, points = edit.try_strengths(served_model, picture, edit.Settings("class 1", 2.0, 4, 3))
    assert all(isinstance(step, Step) for step in steps)
    editor = Editor(served_model, sampler="ancestral", steps=4, seed=3, labels="class 1", guidance=2.0, batch_size=1)
    expected = fidelity_curve(editor, picture[None])
    assert [point.denoising_loss for point in points] == [point.denoising_loss for point in expected]
    assert all(torch.equal(a.images, b.images) for a, b in zip(points, expected, strict=True))
    assert edit.curve_html(points).count("strength_") == 11
    assert edit.curve_html(points).count("<polyline") == 2


def test_a_translation_shows_its_steps(served_model, picture):
    *steps, image = edit.edit_upload(served_model, picture, 0, edit.Settings("class 0", steps=8), "class 1")
    assert steps
    assert all(0 <= step.index < step.steps == 16 for step in steps)
    assert torch.equal(
        image, translate(Editor(served_model, batch_size=1), picture[None], "class 0", "class 1", evaluations=8)[0]
    )


def test_translating_needs_a_class(served_model, picture):
    assert last(edit.edit_upload(served_model, picture, 0, edit.Settings("class 0", steps=4), "class 1")).shape == (
        1,
        16,
        16,
    )
    with pytest.raises(UserError, match="no class is chosen"):
        last(edit.edit_upload(served_model, picture, 0, edit.Settings(), "no class"))


def test_the_uploads_stand_at_the_ends_of_the_way_between_them(served_model, uploads, picture):
    sources = [str(uploads / "good.png"), (uploads / "mask.png").read_bytes()]
    row = last(edit.between(served_model, sources, 0.2, 3, edit.Settings(steps=5)))
    assert row.shape == (5, 1, 16, 16)
    assert torch.equal(row[0], picture)
    expected = read_upload(str(uploads / "good.png"), 1).resize((16, 16), Image.Resampling.BICUBIC, box=(0, 5, 30, 35))
    assert np.array_equal(to_uint8(row[0])[0], expected)
    assert torch.equal(row[-1], read_fitted(sources[1], (1, 16, 16)))


def test_a_missing_second_upload_is_named(served_model, uploads):
    with pytest.raises(UserError, match="the second upload is missing"):
        edit.between(served_model, [str(uploads / "good.png"), None], 0.5, 3, edit.Settings())


# compare


def test_every_cell_is_what_the_model_samples(served_model):
    grid = compare.Grid(["ddim", "heun"], compare.STEPS, [2, 3], 1.5, "class 1", 2, 7)
    cells = {place: event for place, event in compare.compare(served_model, grid) if isinstance(event, torch.Tensor)}
    assert list(cells) == [0, 1, 2, 3]
    expected = served_model.sample(2, sampler="heun", steps=3, labels=1, guidance=1.5, seed=7, batch_size=2)
    assert torch.equal(cells[3], expected)
    by_guidance = compare.Grid(["ddim"], compare.GUIDANCE, [0, 4], 3, number=2)
    assert torch.equal(
        last(compare.compare(served_model, by_guidance))[1],
        served_model.sample(2, sampler="ddim", steps=3, guidance=4.0, batch_size=2),
    )
    assert compare.table(grid, ["data:,"]).count("<img") == 1
    assert compare.table(grid, []).count("<td>") == 5


@pytest.mark.parametrize("axis", [compare.STEPS, compare.GUIDANCE])
def test_the_commands_and_the_program_draw_the_cells(served_model, tmp_path, monkeypatch, axis):
    served_model.save(tmp_path / "a model")
    monkeypatch.chdir(tmp_path)
    grid = compare.Grid(["ddim", "heun"], axis, [2, 3], 2, "class 1", 2, 7)
    cells = [event for _, event in compare.compare(served_model, grid) if isinstance(event, torch.Tensor)]
    names = ["ddim-2.png", "ddim-3.png", "heun-2.png", "heun-3.png"]

    def written():
        found = [np.asarray(Image.open(name)) for name in names]
        for name in names:
            Path(name).unlink()
        return found

    for command in compare.as_command(served_model, "a model", grid).replace("\\\n", "").splitlines():
        assert command_line(shlex.split(command)[1:]) == 0
    first = written()
    exec(compare.as_python(served_model, "a model", grid), {})
    assert all(
        np.array_equal(one, other) and np.array_equal(one, to_pillow(make_grid(cell)))
        for one, other, cell in zip(first, written(), cells, strict=True)
    )


@pytest.mark.parametrize("text", ["", "many", "1,2,3,4,5,6,7,8,9"])
def test_columns_that_cannot_be_are_refused(text):
    with pytest.raises(UserError, match="columns"):
        compare.read_values(text)


@pytest.mark.parametrize(
    "changes", [{"samplers": []}, {"values": [0]}, {"values": [2.5]}, {"fixed": 9}, {"number": 0}, {"label": "class 9"}]
)
def test_a_comparison_that_cannot_be_is_refused(served_model, changes):
    grid = replace(compare.Grid(["ddim"], compare.STEPS, [2], 1.0, number=1), **changes)
    with pytest.raises(UserError):
        list(compare.compare(served_model, grid))


# explore


def test_the_schedule_figure_has_every_curve(served_model):
    found = explore.schedule_curves(served_model, [explore.OWN, "cosine"], explore.Range(timesteps=100))
    assert [len(curve.x) for curve in found["ᾱ"]] == [1000, 100]
    assert np.allclose(found["ᾱ"][0].y, served_model.diffusion.schedule.alphas_cumprod)
    ratio = served_model.diffusion.schedule.alphas_cumprod / (1 - served_model.diffusion.schedule.alphas_cumprod)
    assert np.allclose(found["SNR"][0].y, ratio)


def test_a_schedule_keeps_its_look_whatever_else_is_chosen(served_model):
    looks = [
        explore.schedule_curves(served_model, names, explore.Range())["β"][-1].style()
        for names in (["linear"], [explore.OWN, "cosine", "linear"])
    ]
    assert looks[0] == looks[1]
    every = explore.schedule_curves(served_model, list(explore.NAMES), explore.Range())["β"]
    assert len({curve.style() for curve in every}) == len(every)


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ([], explore.Range()),
        (["wavy"], explore.Range()),
        (["linear"], explore.Range(timesteps=5000)),
        (["linear"], explore.Range(beta_start=0.5, beta_end=0.1)),
    ],
)
def test_an_impossible_schedule_is_refused(served_model, names, asked):
    with pytest.raises(UserError):
        explore.schedule_figure(served_model, names, asked)


def test_the_forward_process_of_an_upload(plain_model, picture, tmp_path):
    frames = explore.noise_upload(plain_model, picture, explore.OWN, explore.Range(), tmp_path / "forward.gif")
    assert np.array_equal(frames[0].x_t, to_uint8(picture))
    with Image.open(tmp_path / "forward.gif") as animation:
        assert animation.n_frames == explore.MOST_FRAMES == len(frames)


# figures


def points(chart: str) -> list[np.ndarray]:
    return [np.array([pair.split(",") for pair in line.split()], float) for line in re.findall('points="(.*?)"', chart)]


def test_a_chart_shows_its_curves_in_proportion():
    x = np.arange(5.0)
    line, curve = points(
        figures.chart("y", "x", [figures.Curve("line", x, 2 * x, 0), figures.Curve("curve", x, x**2 / 2, 1)])
    )
    assert np.allclose(np.diff(line, axis=0), np.diff(line, axis=0)[0], atol=0.2)  # straight, evenly spaced
    assert line[0, 1] > line[-1, 1]  # up is up
    assert np.allclose((curve[0, 1] - curve[:, 1]) / (line[0, 1] - line[-1, 1]), x**2 / 16, atol=0.01)


def test_a_logarithmic_chart_makes_a_power_straight_and_leaves_out_what_has_no_logarithm():
    x = np.arange(6.0)
    (line,) = points(
        figures.chart("y", "x", [figures.Curve("power", x, np.array([0, 10, 100, 1e3, 1e4, np.nan]), 0)], log=True)
    )
    assert len(line) == 4
    assert np.allclose(np.diff(line[:, 1]), np.diff(line[:, 1])[0], atol=0.2)


def test_a_long_curve_keeps_its_ends():
    x = np.arange(10_000.0)
    (line,) = points(figures.chart("y", "x", [figures.Curve("long", x, x, 0)]))
    assert len(line) <= 400
    assert np.allclose(line[[0, -1], 0], [figures.LEFT, figures.WIDTH - figures.RIGHT], atol=0.1)


@pytest.mark.parametrize("values", [[], [np.nan], [3.0], [0.0, 0.0]])
@pytest.mark.parametrize("log", [True, False])
def test_a_curve_of_nothing_or_of_one_height_is_drawn(values, log):
    x = np.arange(float(len(values)))
    assert "<svg" in figures.chart("y", "x", [figures.Curve("name", x, np.array(values), 0)], log=log)


def test_a_figure_says_what_it_shows():
    element = figures.figure([], [figures.Curve("<b>", np.zeros(1), np.zeros(1), 0)], "β & more")
    assert 'aria-label="β &amp; more"' in element
    assert "&lt;b&gt;" in element


def test_a_film_begins_where_it_is_told():
    shots = [([Image.new("L", (2, 2), level)], f"moment {level}") for level in (0, 255)]
    for last_one in (False, True):
        html = film(shots, last=last_one)
        assert f'value="{int(last_one)}"' in html
        with Image.open(io.BytesIO(read_address(re.search('src="(.*?)"', html)[1]))) as picture:
            assert picture.convert("L").getpixel((0, 0)) == 255 * last_one


# runs


def test_runs_are_read_while_they_are_written(runs_folder):
    assert runs.find_runs(runs_folder) == ["first"]
    assert runs.find_runs(runs_folder / "first") == ["first"]
    assert len(runs.read_metrics(runs_folder / "first")) == 300
    assert runs.quantities(runs_folder, ["first"]) == ["loss", "images_per_second"]
    (curve,) = runs.curves(runs_folder, ["first"])
    assert curve.x[-1] == 300
    pictures = runs.previews(runs_folder, "first")
    assert [caption for _, caption in pictures] == ["first, step 100", "first, step 200"]


def test_the_state_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        '{"step": 50, "seconds": 10, "images_per_second": 95.4}',
        '{"step": 100, "seconds": 20, "images_per_second": 95.4}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert runs.state_of(run).words() == ["stopped", "100", "95", ""]
    (run / "config.yaml").write_text("training: {steps: 400}\n")
    (run / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    assert runs.state_of(run).words() == ["training", "100 of 400", "95", "60 s"]
    (run / ".lock").write_text(f"process {os.getpid()} on another machine")
    assert runs.state_of(run).words()[0] == "stopped"
    (run / "config.yaml").write_text("training: {steps: 100}\n")
    assert runs.state_of(run).words() == ["finished", "100 of 100", "95", ""]
    assert "<b>" not in runs.table(tmp_path, []) + runs.nothing_in(tmp_path)


def test_the_switcher_offers_what_there_is_and_nothing_else(served_model, tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    for name in ("empty", "trained"):
        (tmp_path / "runs" / name).mkdir(exist_ok=True)
        (tmp_path / "runs" / name / "metrics.jsonl").touch()
    trained = tmp_path / "runs" / "trained"
    served_model.save(trained / "model")
    for step in ("000500", "001000"):
        (trained / "checkpoints" / step).mkdir(parents=True)
        (trained / "checkpoints" / step / "ema.safetensors").touch()
    offered = models.Models(["mine", "digits"], tmp_path / "runs", page=lambda name: pytest.fail(name), look={})
    assert offered.groups() == {
        "Given": {"mine": "mine", "digits": "digits"},
        "Bundled": {name: name for name in BUNDLED if name != "digits"},
        "Runs": {str(trained): "trained"},
        "Checkpoints": {
            str(trained / "checkpoints" / "001000"): "trained, step 1,000",
            str(trained / "checkpoints" / "000500"): "trained, step 500",
        },
    }
    for name in ("/etc", str(tmp_path / "runs" / "empty"), ""):
        assert "no model" in offered.open(name)["error"]


def until(holds):
    """Wait for another process."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it never came about")


def test_a_training_is_a_process_of_its_own_that_stops_when_told(tmp_path, stub_trainer):
    trainings = training.Trainings(tmp_path / "runs")
    assert trainings.start("new", "digits", "pictures", 5).startswith("Started new.")
    run = tmp_path / "runs" / "new"
    until(lambda: runs.find_runs(tmp_path / "runs") == ["new"] and training.process_of(run))
    assert "-m ddpm train digits --out" in (tmp_path / "runs" / "new.log").read_text()
    assert os.getsid(training.process_of(run).pid) != os.getsid(0)
    assert runs.state_of(run).words()[:2] == ["training", "5 of 100"]
    assert 'data-stop="new"' in runs.table(tmp_path / "runs", ["new"], trains=True)
    assert training.Trainings(tmp_path / "runs").stop("new").startswith("new saves a checkpoint")  # another page, too
    until(lambda: training.process_of(run) is None)
    assert trainings.stop("new") == "new is not training."
    assert trainings.news() == {}
    with pytest.raises(UserError, match="exists"):
        trainings.start("new", "digits", "", 5)


def test_a_training_that_cannot_begin_says_why(tmp_path):
    trainings = training.Trainings(tmp_path)
    trainings.start("new", "digits", str(tmp_path / "nowhere"), 5)
    until(lambda: trainings.started["new"].poll() is not None)
    assert "ddpm: error" in trainings.news()["new"]
    assert "nowhere" in trainings.news()["new"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("", "digits", "", 5), "name"),
        (("../out", "digits", "", 5), "name"),
        (("new", "nothing", "", 5), "no preset"),
        (("new", "digits", "", 0), "minutes"),
        (("new", "digits", "", None), "minutes"),
    ],
)
def test_a_training_that_cannot_be_is_refused(tmp_path, fields, said):
    with pytest.raises(UserError, match=said):
        training.Trainings(tmp_path).start(*fields)
    assert not list(tmp_path.iterdir())


def test_the_run_one_stands_in_has_a_name(runs_folder, monkeypatch):
    monkeypatch.chdir(runs_folder / "first")
    assert runs.find_runs(Path()) == ["first"]
    assert len(runs.read_metrics(runs.run_path(Path(), "first"))) == 300


def test_a_run_that_grows_is_noticed(tmp_path, runs_folder):
    assert runs.fingerprint(tmp_path) == []
    (tmp_path / "new").mkdir()
    config = tmp_path / "new" / "config.yaml"
    config.touch()
    os.utime(config, (1, 1))  # long ago: a file system's clock may stand still between two writes
    before = runs.fingerprint(tmp_path)
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert runs.fingerprint(tmp_path) != before


@pytest.mark.parametrize("name", ["../first", "other", "", "/etc"])
def test_no_other_directory_is_read(runs_folder, name):
    with pytest.raises(UserError, match="no run"):
        runs.run_path(runs_folder, name)


def test_a_run_with_a_dollar_in_its_name_is_drawn(tmp_path):
    run = tmp_path / "a$b$_"
    run.mkdir()
    (run / "config.yaml").touch()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    (curve,) = runs.curves(tmp_path, ["a$b$_"])
    assert curve.name == "a$b$_"
    assert "a$b$_" in runs.table(tmp_path, ["a$b$_"])
