"""Figures hold the numbers they were given, are told apart without colour, and are whole, reproducible files."""

import itertools
import re

import numpy as np
import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.plotting import plots
from ddpm.plotting.plots import Curve, plot_images, plot_loss, plot_quality, plot_schedules, save_figure

matplotlib = pytest.importorskip("matplotlib")

BETAS = {"linear": np.linspace(1e-4, 0.02, 1000), "constant": np.full(500, 0.01)}
CURVES = {
    "one": Curve([5, 10, 20], [9.0, 5.0, 4.0], [8.0, 4.0, 3.5], [10.0, 6.0, 4.5]),
    "two": Curve([5, 9, 19], [40.0, 7.0, 4.2]),
}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 3 * 8 * 8).reshape(2, 3, 3, 8, 8)


FIGURES = {
    "schedules": lambda: plot_schedules(BETAS),
    "loss": lambda: plot_loss(CURVES),
    "quality": lambda: plot_quality(CURVES, "FID"),
    "images": lambda: plot_images(IMAGES, columns=["a", "b", "c"], rows=["x", "y"], title="title"),
}


def test_schedule_curves_are_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    axes = plot_schedules({"linear": BETAS["linear"]}).axes
    expected = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), scheduler.betas, rtol=1e-5)
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), expected, rtol=1e-4)
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), expected / (1 - expected), rtol=2e-3)


def test_a_schedule_that_ends_without_signal_is_drawn_up_to_there():
    snr = plot_schedules({"zero": [0.1, 0.5, 1.0]}).axes[2].lines[0].get_ydata()
    assert np.isfinite(snr[:2]).all()
    assert np.isnan(snr[2])


def test_curves_are_drawn_where_they_are():
    lines = plot_quality(CURVES, "FID").axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [CURVES["one"].y, CURVES["two"].y]
    assert [list(line.get_xdata()) for line in lines] == [CURVES["one"].x, CURVES["two"].x]


def test_a_figure_below_zero_is_within_the_axis():
    ax = plot_quality({**CURVES, "three": Curve([5, 20], [0.5, -0.01])}, "KID").axes[0]
    assert (ax.get_yscale(), ax.get_xscale()) == ("linear", "log")
    assert ax.get_ylim()[0] < -0.01
    assert plot_quality(CURVES, "FID").axes[0].get_yscale() == "log"


@pytest.mark.parametrize("name", ["5$ \\frac 3$", "$5", r"\$ and $"])
def test_a_dollar_begins_no_formula(tmp_path, name):
    """Classes and runs are called as their owners like."""
    pictures = plot_images(IMAGES, columns=[name, "b", "c"], rows=["x", name])
    others = [plot({name: curve}) for plot, curve in ((plot_loss, CURVES["one"]), (plot_schedules, [0.1, 0.2]))]
    for number, drawn in enumerate([pictures, *others, plot_quality({name: CURVES["one"]}, "FID")]):
        save_figure(drawn, tmp_path / f"{number}.svg")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_figure(pictures, tmp_path / "words.svg")
    assert (tmp_path / "words.svg").read_text().count(f">{name}</text>") == 2


def test_a_band_is_shaded_where_one_is_given():
    assert len(plot_loss(CURVES).axes[0].collections) == 1


@pytest.mark.parametrize("name", ["schedules", "loss", "quality"])
def test_curves_differ_by_more_than_their_colour(name):
    for ax in FIGURES[name]().axes:
        looks = [(str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in ax.lines]
        assert len(set(looks)) == len(looks)


def test_colours_stay_apart_for_the_colour_blind():
    """Deuteranopia and protanopia, by the matrices of Machado et al. 2009 on linear RGB: 7 colours, all far apart."""
    matrices = {
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    }
    codes = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in plots.COLOURS])
    linear = np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)
    for matrix in matrices.values():
        seen = (linear @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2)
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(seen, 2)) > 0.1


@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_large_enough_for_print(name):
    from matplotlib.text import Text

    drawn = FIGURES[name]()
    texts = [text for text in drawn.findobj(Text) if text.get_text()]
    assert texts
    assert min(text.get_fontsize() for text in texts) >= 8
    assert drawn.get_size_inches()[0] <= 7


def test_images_stand_under_their_titles():
    drawn = plot_images(IMAGES, columns=["a", "b", "c"], rows=["x", "y"])
    ax = drawn.axes[0]
    pixels = ax.images[0].get_array()
    for column, place in enumerate(ax.get_xticks()):
        for row, level in enumerate(ax.get_yticks()):
            around = np.asarray(pixels)[int(level + 0.5) - 4 : int(level + 0.5) + 4, int(place + 0.5) - 4 :][:, :8]
            expected = ((IMAGES[row, column] + 1) * 127.5).round().permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(around, expected)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_channels_are_drawn(tmp_path, channels):
    images = torch.rand(1, 2, channels, 8, 12) * 2 - 1
    assert save_figure(plot_images(images), tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "ending"),
    [("schedules", "pdf"), ("loss", "svg"), ("quality", "png"), ("images", "pdf"), ("images", "svg")],
)
def test_the_same_figure_is_the_same_file(tmp_path, name, ending):
    one = save_figure(FIGURES[name](), tmp_path / f"one.{ending}").read_bytes()
    two = save_figure(FIGURES[name](), tmp_path / f"two.{ending}").read_bytes()
    assert one == two
    assert one.startswith({"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[ending])
    if ending == "pdf":
        assert b"/Type3" not in one


def test_curves_are_vectors(tmp_path):
    text = save_figure(plot_loss(CURVES), tmp_path / "a.svg").read_text()
    assert "<image" not in text
    assert len(re.findall("<path", text)) > 10


def test_style_does_not_leak():
    before = dict(matplotlib.rcParams)
    FIGURES["schedules"]()
    assert dict(matplotlib.rcParams) == before


def test_what_is_there_is_kept_and_other_endings_are_refused(tmp_path):
    (tmp_path / "a.pdf").write_text("mine")
    with pytest.raises(UserError, match="exists: give another --out"):
        save_figure(plot_loss(CURVES), tmp_path / "a.pdf")
    with pytest.raises(UserError, match=r"\.pdf or \.svg or \.png"):
        save_figure(plot_loss(CURVES), tmp_path / "a.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pdf"]
