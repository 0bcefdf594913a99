"""What is behind the Explore tab, and the figures of the page."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from ddpm.app import explore, figures
from ddpm.app.components import film
from ddpm.app.uploads import read_address
from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8


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


def test_a_curve_of_one_point_is_a_dot_in_its_colour():
    drawn = figures.chart("y", "x", [figures.Curve("run", np.array([5.0]), np.array([0.1]), 0)])
    (dot,) = re.findall(r'<circle cx="(.*?)" cy="(.*?)" r="4" fill="(.*?)"/>', drawn)
    assert figures.LEFT < float(dot[0]) < figures.WIDTH
    assert figures.TOP < float(dot[1]) < figures.HEIGHT - figures.BOTTOM
    assert dot[2] == figures.COLOURS[0]
    assert re.findall(r">([\d.]+)</text>", drawn) == ["0.1", "5"]  # both axes tell its place and nothing else


def test_steps_are_told_in_whole_numbers():
    drawn = figures.chart("y", "x", [figures.Curve("run", np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.4, 0.3]), 0)])
    assert re.findall(r'text-anchor="middle" .*?>([\d.]+)</text>', drawn) == ["1", "2", "3"]


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
