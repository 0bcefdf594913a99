"""Frames are chosen beforehand, kept small, and written as moving pictures that other programs can open."""

import gc
import importlib
import math
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_pillow
from ddpm.plotting.animation import Frame, Recorder, Trajectory, check_animation, choose_frames, picture, strip


def log_snr(t: float) -> float:
    return math.inf if t < 0 else 5 - t / 50


def recorder(steps: int, frames: int, **options) -> Recorder:
    return Recorder([*map(float, range(steps - 1, -1, -1)), -1.0], log_snr, "reverse", frames=frames, **options)


def trajectory(channels: int = 3, size: int = 8, count: int = 5, num: int = 1) -> Trajectory:
    images = torch.linspace(-1, 1, num * channels * size * size).reshape(num, channels, size, size)
    seen = recorder(count - 1, count)
    for state in range(count):
        seen.see(state, images * (state + 1) / count, images)
    return Trajectory(seen.frames, images)


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-20, 20), min_size=2, max_size=200),
    frames=st.integers(2, 80),
    spacing=st.sampled_from(["uniform", "log_snr"]),
    infinite=st.sets(st.sampled_from(["first", "last"])),
)
def test_frames_are_few_rising_and_hold_both_ends(values, frames, spacing, infinite):
    values = sorted(values)
    if "first" in infinite:
        values[0] = -math.inf
    if "last" in infinite:
        values[-1] = math.inf
    for order in (values, values[::-1]):
        chosen = choose_frames(order, frames, spacing)
        assert chosen == sorted(set(chosen))
        assert {0, len(order) - 1} <= set(chosen)
        assert len(chosen) <= frames


def test_uniform_frames_are_even_in_time_and_log_snr_frames_in_log_snr():
    values = [(i / 100) ** 3 for i in range(101)]
    assert choose_frames(values, 5) == [0, 25, 50, 75, 100]
    by_log_snr = choose_frames(values, 5, "log_snr")
    assert [values[i] for i in by_log_snr] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.02)


def test_a_recorder_keeps_the_chosen_frames_and_nothing_else():
    """Memory flat at 1,000 steps: what was not chosen is let go, what was is uint8."""
    seen, alive = recorder(1000, 12), []
    for state in range(1001):
        x_t = torch.randn(2, 3, 8, 8)
        alive.append(weakref.ref(x_t))
        seen.see(state, x_t, x_t)
    del x_t
    gc.collect()
    assert len(seen.frames) == 12
    assert not any(reference() is not None for reference in alive)
    assert {frame.x_t.dtype for frame in seen.frames} == {torch.uint8}
    assert [seen.frames[0].t, seen.frames[-1].t] == [999, -1]
    assert seen.frames[-1].log_snr == math.inf


def test_a_single_image_is_kept_pixel_by_pixel():
    image = torch.randint(0, 256, (1, 3, 8, 8))
    seen = recorder(1, 2)
    seen.see(1, image / 127.5 - 1, None)
    assert torch.equal(seen.frames[0].x_t, image[0].to(torch.uint8))
    assert seen.frames[0].x_0 is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num", [1, 3])
def test_a_gif_holds_every_frame_and_the_last_one_longer(tmp_path, channels, num):
    path = trajectory(channels, num=num).save(tmp_path / "a.gif", fps=10, hold=1.5)
    with Image.open(path) as gif:
        assert gif.n_frames == 5
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert durations == [100, 100, 100, 100, 1500]


def test_a_grey_gif_shows_the_exact_levels(tmp_path):
    seen = trajectory(channels=1)
    path = seen.save(tmp_path / "a.gif")
    with Image.open(path) as gif:
        for index, expected in enumerate(seen.pictures()):
            gif.seek(index)
            assert gif.convert("L").tobytes() == expected.tobytes()


def test_an_mp4_can_be_read_back(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    seen = trajectory(size=7)
    path = seen.save(tmp_path / "a.mp4", fps=10, hold=1.0)
    video = imageio.imread(path, plugin="FFMPEG")
    assert len(video) == 5 + 10
    width, height = next(seen.pictures()).size
    assert video.shape[1:] == (height + height % 2, width + width % 2, 3)
    shown = torch.tensor(video[-1][:height, :width]).float()
    drawn = torch.frombuffer(bytearray(list(seen.pictures())[-1].tobytes()), dtype=torch.uint8)
    assert (shown - drawn.reshape(height, width, 3)).abs().mean() < 12  # lossy, but this picture


def test_a_strip_shows_every_frame_at_its_place(tmp_path):
    seen = trajectory(size=16, count=3)
    path = seen.save(tmp_path / "a.png")
    with Image.open(path) as image:
        found = image.convert("RGB")
    for frame in seen.frames:  # each panel, enlarged seven times, lies somewhere in the strip
        panel = to_pillow(frame.x_t).resize((112, 112), Image.Resampling.NEAREST)
        places = [
            (x, y)
            for x in range(found.width - 112)
            for y in range(8, 40)
            if found.getpixel((x, y)) == panel.getpixel((0, 0))
            and found.crop((x, y, x + 112, y + 112)).tobytes() == panel.tobytes()
        ]
        assert places


def test_captions_change_with_t_and_snr_and_phase():
    grid = torch.zeros(3, 8, 8, dtype=torch.uint8)

    def drawn(t: float, value: float, phase="reverse") -> bytes:
        return picture(Frame(phase, t, value, grid, grid), 0.5).tobytes()

    shown = [drawn(3.0, 1.0), drawn(4.0, 1.0), drawn(3.0, 2.0), drawn(-1.0, math.inf), drawn(3.0, 1.0, "forward")]
    assert len(set(shown)) == len(shown)
    assert drawn(3.0, 1.0) == drawn(3.0, 1.0)


def test_extreme_sizes_are_drawn():
    tall = Frame("forward", 5.0, -math.inf, torch.zeros(1, 700, 20, dtype=torch.uint8), None)
    assert max(picture(tall, 0.0).size) < 800
    assert strip([tall, tall]).width < 1000


@pytest.mark.parametrize("name", ["a.webm", "a", "a.jpg"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"\.gif or \.mp4 or \.png"):
        check_animation(tmp_path / name)


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "a.gif").write_text("mine")
    with pytest.raises(UserError, match="exists: give another --out"):
        trajectory().save(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").read_text() == "mine"
    trajectory().save(tmp_path / "a.gif", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("missing", ["imageio", "imageio_ffmpeg"])
def test_without_ffmpeg_an_mp4_says_what_to_install_and_a_gif_still_works(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"run pip install 'ddpm-kit\[video\]'"):
        trajectory().save(tmp_path / "a.mp4")
    trajectory().save(tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_ffmpeg_itself_missing_is_told_too(tmp_path, monkeypatch):
    module = pytest.importorskip("imageio_ffmpeg")

    def nothing():
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(module, "get_ffmpeg_exe", nothing)
    with pytest.raises(UserError, match="needs ffmpeg"):
        check_animation(tmp_path / "a.mp4")
    assert importlib.import_module("imageio_ffmpeg") is module


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": 101}, {"fps": -3}, {"fps": 0.001}])
def test_impossible_frame_rates_are_refused(tmp_path, options):
    with pytest.raises(UserError, match="frames a second"):
        trajectory().save(tmp_path / "a.gif", **options)


@pytest.mark.parametrize("hold", [-1, 656, 700, math.inf, math.nan])
def test_a_last_frame_that_no_gif_can_hold_is_refused(tmp_path, hold):
    with pytest.raises(UserError, match="choose 0 to 655"):
        check_animation(tmp_path / "a.gif", hold=hold)


def test_the_longest_pauses_are_written(tmp_path):
    with Image.open(trajectory(count=2).save(tmp_path / "a.gif", fps=0.01, hold=655)) as gif:
        assert gif.info["duration"] == 100_000
        gif.seek(1)
        assert gif.info["duration"] == 655_000


def test_a_trajectory_of_one_frame_is_refused():
    with pytest.raises(UserError, match="at least 2"):
        choose_frames([1.0, 2.0], 1)
