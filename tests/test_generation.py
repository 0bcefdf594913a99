"""Drawing to files: every kind of output, what is there is kept, and several processes do what one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.generate import generate
from ddpm.model import Model

OPTIONS = {"sampler": "ancestral", "steps": 3, "batch_size": 2, "precision": "fp32"}


@pytest.fixture
def expected(model) -> np.ndarray:
    """uint8, N, H, W, C."""
    return to_uint8(model.sample(5, **OPTIONS)).permute(0, 2, 3, 1).numpy()


def read_folder(folder) -> np.ndarray:
    return np.stack([np.array(Image.open(path))[..., None] for path in sorted(folder.glob("*.png"))])


def test_array_and_folder_hold_the_samples(model, expected, tmp_path):
    generate(model, tmp_path / "a.npz", num=5, **OPTIONS)
    generate(model, tmp_path / "folder", num=5, **OPTIONS)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], expected)
    assert np.array_equal(read_folder(tmp_path / "folder"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "folder"]


def test_an_ending_may_be_in_capitals(model, expected, tmp_path):
    generate(model, tmp_path / "A.NPZ", num=5, **OPTIONS)
    generate(model, tmp_path / "GRID.PNG", num=5, **OPTIONS)
    assert np.array_equal(np.load(tmp_path / "A.NPZ")["arr_0"], expected)
    assert Image.open(tmp_path / "GRID.PNG").format == "PNG"
    with pytest.raises(UserError, match="JPEG changes pixels"):
        generate(model, tmp_path / "A.JPG", num=5, **OPTIONS)


def test_grid_holds_the_samples(model, expected, tmp_path):
    generate(model, tmp_path / "grid.png", num=5, columns=5, **OPTIONS)
    grid = np.array(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (8 + 2 * 2, 5 * 8 + 6 * 2)
    height = grid.shape[0]
    assert any(np.array_equal(grid[y : y + 8, x : x + 8], expected[3, ..., 0])
               for y in range(height - 7) for x in range(grid.shape[1] - 7))  # fmt: skip


@pytest.mark.parametrize("name", ["a.npz", "grid.png", "folder"])
def test_what_is_there_is_kept_unless_overwritten(model, tmp_path, name):
    out = tmp_path / name
    if name == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("precious")
    else:
        out.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        generate(model, out, num=2, **OPTIONS)
    assert (out / "mine.txt" if out.is_dir() else out).read_text() == "precious"
    generate(model, out, num=2, overwrite=True, **OPTIONS)
    assert not out.is_dir() or (out / "mine.txt").read_text() == "precious"


def test_pictures_of_another_hand_do_not_pass_for_a_finished_batch(model, expected, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "000004.png")
    generate(model, folder, num=5, overwrite=True, **OPTIONS)
    assert np.array_equal(read_folder(folder), expected)


@pytest.mark.parametrize(
    "wrong", [{"sampler": "nope"}, {"steps": 5000}, {"batch_size": 0}, {"labels": 3}, {"guidance": 2.0}, {"eta": 0.5}]
)
def test_a_wrong_option_shows_before_anything_is_touched(model, tmp_path, wrong):
    generate(model, tmp_path / "folder", num=2, **OPTIONS)
    before = read_folder(tmp_path / "folder")
    for name in ("folder", "new"):
        with pytest.raises(UserError):
            generate(model, tmp_path / name, num=2, overwrite=True, **OPTIONS | wrong)
    assert np.array_equal(read_folder(tmp_path / "folder"), before)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_other_settings_is_not_mixed_with(model, tmp_path):
    generate(model, tmp_path / "folder", num=4, **OPTIONS)
    with pytest.raises(UserError, match="exists"):
        generate(model, tmp_path / "folder", num=4, seed=1, **OPTIONS)
    generate(model, tmp_path / "folder", num=2, overwrite=True, seed=1, **OPTIONS)
    assert len(list((tmp_path / "folder").glob("*.png"))) == 2


def begin(model, out) -> None:
    """Draw five images in three batches, and be killed in the second."""

    class Killed(Exception):
        pass

    drawn = []

    def dying(step):
        drawn.append(step)
        if len(drawn) > 4:
            raise Killed

    with pytest.raises(Killed):
        generate(model, out, num=5, callback=Bare(dying), **OPTIONS)


def steps_to_finish(model, out, **options) -> int:
    """The steps that the same call takes until it is done."""
    drawn = []
    generate(model, out, num=5, callback=Bare(drawn.append), **OPTIONS, **options)
    return len(drawn)


@pytest.mark.parametrize("name", ["a.npz", "folder", "folder.parts"])
def test_a_killed_run_goes_on_where_it_was(model, expected, tmp_path, name):
    begin(model, tmp_path / name)
    assert steps_to_finish(model, tmp_path / name) == 2 * OPTIONS["steps"]  # the first of three batches was done
    found = np.load(tmp_path / name)["arr_0"] if name == "a.npz" else read_folder(tmp_path / name)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_unfinished_images_of_other_settings_are_kept_unless_overwritten(model, tmp_path, name):
    out = tmp_path / name
    begin(model, out)
    with pytest.raises(UserError, match="--overwrite"):
        generate(model, out, num=5, **OPTIONS | {"steps": 2})
    assert steps_to_finish(model, out) == 2 * OPTIONS["steps"]
    begin(model, tmp_path / f"new_{name}")
    generate(model, tmp_path / f"new_{name}", num=5, overwrite=True, **OPTIONS | {"steps": 2})


def test_a_result_that_appeared_since_the_run_was_killed_is_kept_unless_overwritten(model, expected, tmp_path):
    out = tmp_path / "a.npz"
    begin(model, out)
    out.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        steps_to_finish(model, out)
    assert out.read_text() == "precious"
    assert steps_to_finish(model, out, overwrite=True) == 2 * OPTIONS["steps"]
    assert np.array_equal(np.load(out)["arr_0"], expected)


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_unfinished_images_of_another_process_are_not_gone_on_with(model, tmp_path, name):
    """The same weights told another prediction, as after a mended scheduler_config.json, draw other images."""
    begin(model, tmp_path / name)
    v = replace(model.diffusion, prediction="v")
    mended = Model(model.network, v, image_shape=model.image_shape)
    with pytest.raises(UserError, match="--overwrite"):
        generate(mended, tmp_path / name, num=5, **OPTIONS)
    assert steps_to_finish(mended, tmp_path / name, overwrite=True) == 3 * OPTIONS["steps"]


def test_a_finished_folder_is_drawn_anew_when_overwritten(model, expected, tmp_path):
    folder = tmp_path / "folder"
    assert steps_to_finish(model, folder) == 3 * OPTIONS["steps"]
    Image.new("L", (8, 8)).save(folder / "000001.png")
    assert steps_to_finish(model, folder) == 0
    assert steps_to_finish(model, folder, overwrite=True) == 3 * OPTIONS["steps"]
    assert np.array_equal(read_folder(folder), expected)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_image_that_was_deleted_from_a_folder_is_drawn_again(model, expected, tmp_path, overwrite):
    folder = tmp_path / "folder"
    steps_to_finish(model, folder)
    (folder / "000000.png").unlink()
    assert steps_to_finish(model, folder, overwrite=overwrite) == OPTIONS["steps"]
    assert np.array_equal(read_folder(folder), expected)


class Bare:
    """A callback whose text is always the same, so that settings compare equal."""

    def __init__(self, function):
        self.function = function

    def __call__(self, step):
        self.function(step)

    def __str__(self):
        return "callback"


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_processes_share_the_work_to_the_bit(model, expected, tmp_path, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        generate(model, tmp_path / name, num=5, **OPTIONS)
    found = np.load(tmp_path / name)["arr_0"] if name == "a.npz" else read_folder(tmp_path / name)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("num", "ranks"), [(5, "2103"), (4, "102")])  # three batches, and two full ones
def test_a_process_without_a_batch_may_come_when_all_is_done(model, expected, tmp_path, monkeypatch, num, ranks):
    monkeypatch.setenv("WORLD_SIZE", str(len(ranks)))
    for rank in ranks:
        monkeypatch.setenv("RANK", rank)
        generate(model, tmp_path / "a.npz", num=num, **OPTIONS)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], expected[:num])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_jpeg_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="JPEG"):
        generate(model, tmp_path / "a.jpg", num=1, **OPTIONS)


def test_colour_channels_stay_in_place(model, tmp_path):
    model.sample_batches = lambda indices, *_, **__: iter([(list(indices), torch.tensor([1.0, -1, 0]).expand(8, 8, 3)
                                                       .permute(2, 0, 1)[None])])  # fmt: skip
    generate(model, tmp_path / "folder", num=1, **OPTIONS)
    assert Image.open(tmp_path / "folder" / "000000.png").getpixel((0, 0)) == (255, 0, 128)
