"""What is behind the tabs, without Gradio."""

import os
import re
import shlex
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.app import edit, explore, generate, runs
from ddpm.app import restore as restoring
from ddpm.app.components import live, read_fitted, read_mask, read_upload
from ddpm.app.explore import as_svg
from ddpm.cli import run as command_line
from ddpm.common.errors import UserError
from ddpm.restoration import Restored
from ddpm.samplers.algorithms import Step

SVG_SIZE = re.compile(r'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"')


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


# live


def test_closing_the_iterator_ends_the_work():
    done = threading.Event()

    def work(callback):
        try:
            for index in range(10_000):
                time.sleep(0.001)
                callback(Step(index, 10_000, 0.0, 0.0, *[torch.zeros(1)] * 3))
        finally:
            done.set()

    steps = live(work)
    assert isinstance(next(steps), Step)
    steps.close()
    assert done.wait(5)


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
    grid, gif, array = events[-1].save(tmp_path)
    assert np.load(array)["arr_0"].shape == (5, 16, 16, 1)
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
    grid, _, _ = last(generate.sample_live(served_model, settings)).save(tmp_path)
    wanted = grid.read_bytes()
    words = shlex.split(generate.as_command("a model", options).replace("\\\n", ""))
    assert command_line([*words[1:], "--overwrite"]) == 0
    assert (tmp_path / "samples.png").read_bytes() == wanted
    (tmp_path / "samples.png").unlink()
    exec(generate.as_python("a model", options), {})
    assert (tmp_path / "samples.png").read_bytes() == wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (generate.Settings(number=65), "number of images must be a whole number from 1 to 64"),
        (generate.Settings(number=0), "number of images"),
        (generate.Settings(steps=1001), "number of steps must be a whole number from 1 to 1000"),
        (generate.Settings(seed=-1), "the seed"),
        (generate.Settings(seed=None), "the seed"),
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


# restore


@pytest.mark.parametrize("kind", restoring.KINDS[:-1])
@pytest.mark.parametrize("clean", [True, False])
def test_every_damage_is_restored(served_model, uploads, kind, clean):
    damage = restoring.Damage(kind, noise=0.1)
    answer = last(restoring.restore_upload(served_model, str(uploads / "good.png"), None, damage, clean=clean, steps=2))
    assert answer.before.size == answer.after.size
    assert answer.report.startswith("Mean of 4 draws.")
    assert ("PSNR" in answer.report) == clean


@pytest.mark.parametrize("clean", [True, False])
def test_the_rounding_of_a_blurred_upload_is_taken_for_noise(served_model, uploads, clean):
    blur = restoring.Damage(restoring.BLUR, blur=1.5)
    answer = last(restoring.restore_upload(served_model, str(uploads / "good.png"), None, blur, clean=clean, steps=2))
    assert ("σ is taken as 0.0011" in answer.report) != clean


def test_only_the_painted_part_changes(served_model, uploads):
    lost = torch.arange(16).expand(16, 16) >= 8
    picture = str(uploads / "good.png")
    answer = last(restoring.restore_upload(served_model, picture, lost, restoring.Damage(), steps=3))
    before, after, spread = (np.asarray(image).astype(int) for image in (answer.before, answer.after,
                                                                         answer.uncertainty))  # fmt: skip
    half = before.shape[1] // 2
    assert np.abs(before[:, :half] - after[:, :half]).max() <= 1
    assert np.abs(before[:, half:] - after[:, half:]).max() > 20
    assert spread[:, :half].max() <= spread[:, half:].min() + 5


def test_an_upload_is_restored_as_its_class(strict_model, uploads):
    def restored(label):
        picture, damage = str(uploads / "good.png"), restoring.Damage(restoring.RANDOM)
        events = restoring.restore_upload(strict_model, picture, None, damage, steps=3, label=label)
        return np.asarray(last(events).after)

    assert not np.array_equal(restored("class 0"), restored("class 1"))
    with pytest.raises(UserError, match="needs labels"):
        restored("no class")


def test_what_is_left_is_judged_as_it_is_seen():
    """Noise leaves [-1, 1], and no picture does."""
    white = torch.ones(1, 16, 16)
    answer = restoring.answer(3 * white, Restored(torch.zeros(1, 2, 1, 16, 16)), white)
    assert answer.report.endswith("before inf dB.")


def test_nothing_painted_is_said_so(served_model, uploads):
    with pytest.raises(UserError, match="no pixels are marked"):
        restoring.restore_upload(served_model, str(uploads / "good.png"), None, restoring.Damage())


def test_colour_is_offered_only_where_there_is_some(served_model):
    assert restoring.GREY not in restoring.damages(served_model)


# edit


def test_strength_0_keeps_the_upload_and_1_does_not(served_model, uploads):
    picture = str(uploads / "good.png")
    before, after, report = edit.edit_upload(served_model, picture, 0.0)
    assert np.array_equal(before, after)
    assert "PSNR inf" in report
    before, after, _ = edit.edit_upload(served_model, picture, 1.0, label="class 0", steps=4)
    assert not np.array_equal(before, after)


def test_the_uploads_stand_at_the_ends_of_the_way_between_them(served_model, uploads):
    row = edit.between(served_model, [str(uploads / "good.png"), str(uploads / "mask.png")], 0.2, number=3, steps=5)
    factor = row.height // 20
    first = np.asarray(row.resize((row.width // factor, 20), Image.Resampling.NEAREST))[2:18, 2:18]
    assert np.array_equal(first, np.asarray(read_upload(str(uploads / "good.png"), 1).resize(
        (16, 16), Image.Resampling.BICUBIC, box=(0, 5, 30, 35))))  # fmt: skip
    assert row.width // factor == 5 * 18 + 2


def test_a_missing_second_upload_is_named(served_model, uploads):
    with pytest.raises(UserError, match="the second upload is missing"):
        edit.between(served_model, [str(uploads / "good.png"), None], 0.5)


# explore


def test_the_schedule_figure_has_every_curve(served_model):
    drawn = explore.schedule_figure(served_model, [explore.OWN, "cosine"], explore.Range(timesteps=100))
    lengths = [len(line.get_xdata()) for line in drawn.axes[1].lines]
    assert lengths == [1000, 100]
    assert np.allclose(drawn.axes[1].lines[0].get_ydata(), served_model.diffusion.schedule.alphas_cumprod)


def test_a_figure_is_there_for_a_desk_and_for_a_phone(served_model):
    drawn = explore.schedule_figure(served_model, [explore.OWN, "linear"], explore.Range())
    element = as_svg(drawn, "β & more")
    assert 'aria-label="β &amp; more"' in element
    sizes = [(float(width), float(height)) for width, height in SVG_SIZE.findall(element)]
    assert len(sizes) == 2
    assert sizes[0][0] > 2 * sizes[0][1]  # points; three axes side by side
    assert sizes[1][0] < 390 / 96 * 72 < sizes[1][1]  # one below the other
    first, second, third = (ax.get_position() for ax in drawn.axes)
    assert first.y0 > second.y1 > second.y0 > third.y1


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


def test_the_forward_process_of_an_upload(plain_model, uploads, tmp_path):
    strip, path = explore.noise_upload(plain_model, str(uploads / "good.png"), explore.OWN, explore.Range(), tmp_path)
    assert strip.width < 500  # two rows of three, to be read on a phone
    with Image.open(path) as animation:
        assert animation.n_frames == explore.MOST_FRAMES


# runs


def test_runs_are_read_while_they_are_written(runs_folder):
    assert runs.find_runs(runs_folder) == ["first"]
    assert runs.find_runs(runs_folder / "first") == ["first"]
    assert len(runs.read_metrics(runs_folder / "first")) == 300
    assert runs.quantities(runs_folder, ["first"]) == ["loss", "images_per_second"]
    (line,) = runs.curves(runs_folder, ["first"]).axes[0].lines
    assert line.get_xdata()[-1] == 300
    pictures = runs.grids(runs_folder, ["first"])
    assert [caption for _, caption in pictures] == ["first, step 200", "first, step 100"]


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
    runs.curves(tmp_path, ["a$b$_"]).canvas.draw()
