"""What the plots of an edit show: every image in its place, every number on its axis."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.data import open_dataset
from ddpm.editing.editor import CurvePoint
from ddpm.editing.inversion import RoundTrip
from ddpm.editing.pictures import ROWS_DRAWN, draw_curve, draw_reconstructions, read_fitted, read_folder

pytest.importorskip("matplotlib")


def images(number: int, channels: int, start: int) -> Tensor:
    """(number, channels, 4, 7) in [-1, 1], each of one grey level of its own."""
    levels = start + torch.arange(number * channels).reshape(number, channels, 1, 1)
    return (levels / 127.5 - 1).expand(number, channels, 4, 7)


def shown(figure, row: int, column: int) -> list[int]:
    """The colours in the middle of a picture of the gallery; pictures are 4×7, two pixels apart."""
    pixels = np.asarray(figure.axes[0].images[0].get_array())
    return np.atleast_1d(pixels[2 + row * 6 + 2, 2 + column * 9 + 3]).astype(int).tolist()


def titles(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def check_gallery(figure, rows: int) -> None:
    """The pictures at their own shape, in grey levels from 0 to 255, with titles above them and nothing else."""
    pictures, chart = figure.axes[:2]
    height, width = pictures.images[0].get_array().shape[:2]
    assert (height, width) == (2 + 6 * rows, 2 + 9 * 3)
    assert pictures.images[0].get_clim() == (0, 255)
    assert pictures.get_xticks().tolist() == pytest.approx([1 + 9 * (column + 0.5) for column in range(3)])
    assert not len(pictures.get_yticks())
    assert not pictures.get_frame_on()
    assert not any(line.get_visible() for line in pictures.get_xgridlines())
    ticks = pictures.xaxis.get_tick_params()
    assert (ticks["labeltop"], ticks["labelbottom"], ticks["length"]) == (True, False, 0)
    shape = pictures.get_subplotspec().get_gridspec().get_height_ratios()
    assert shape == pytest.approx([6.3 * height / width, 2.4])
    assert figure.get_figheight() == pytest.approx(sum(shape) + 0.4)
    assert all(axis.get_label_text() for axis in (chart.xaxis, chart.yaxis))


def check_told_apart(lines) -> None:
    """No two curves look alike without colours: each has dashes or a marker that no other has, and the points show."""
    looks = [(line.get_linestyle(), line.get_marker()) for line in lines]
    assert len(set(looks)) == len(looks)
    assert all(line.get_marker() not in ("None", None, "") for line in lines if line.get_linestyle() != ":")


@pytest.mark.parametrize(("number", "channels"), [(2, 1), (3, 3), (9, 3)])
def test_a_curve_shows_images_psnr_and_loss(number, channels):
    points = [
        CurvePoint(strength, psnr, 0.5 + strength / 9, loss, images(number, channels, start))
        for strength, psnr, loss, start in [(0.0, np.inf, 0.11, 3), (0.25, 31.0, 0.09, 80), (0.9, 17.5, 0.07, 150)]
    ]
    figure = draw_curve(points)
    assert titles(figure) == ["original", "0.25", "0.9"]
    for column, point in enumerate(points):
        for row in range(min(number, ROWS_DRAWN)):
            expected = ((point.images[row, :, 0, 0] + 1) * 127.5).round().int().tolist()
            assert shown(figure, row, column) == expected
    check_gallery(figure, min(number, 6))
    _, left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[0.25, 31.0], [0.9, 17.5]]
    assert right.lines[0].get_xydata().tolist() == [[0.25, 0.09], [0.9, 0.07]]
    assert set(right.lines[1].get_ydata()) == {0.11}  # the originals' loss
    assert "PSNR" in left.get_ylabel()
    assert "loss" in right.get_ylabel()
    assert left.lines[0].get_color() != right.lines[0].get_color()
    check_told_apart([*left.lines, *right.lines])
    assert right.lines[1].get_linestyle() == ":"  # as the axis says
    assert left.yaxis.get_label().get_color() == left.lines[0].get_color()
    assert {line.get_color() for line in right.lines} == {right.yaxis.get_label().get_color()}
    assert not any(line.get_visible() for line in right.get_ygridlines())


def test_reconstructions_show_errors_in_levels_of_255():
    originals = images(2, 3, 9)
    trips = [
        RoundTrip(0.2, images(2, 3, 60), 0.004, 0.01, 40.0),
        RoundTrip(0.7, images(2, 3, 120), 0.02, 0.3, 30.0),
    ]
    figure = draw_reconstructions(originals, trips)
    assert titles(figure) == ["original", "0.2", "0.7"]
    for column, start in enumerate((9, 60, 120)):
        assert [shown(figure, row, column) for row in (0, 1)] == [
            [start, start + 1, start + 2],
            [start + 3, start + 4, start + 5],
        ]
    check_gallery(figure, 2)
    root, largest = figure.axes[1].lines
    assert root.get_xydata().tolist() == [[0.2, pytest.approx(0.51)], [0.7, pytest.approx(2.55)]]
    assert largest.get_xydata().tolist() == [[0.2, pytest.approx(1.275)], [0.7, pytest.approx(38.25)]]
    assert [line.get_label() for line in figure.axes[1].lines] == ["root mean square", "largest"]
    assert figure.axes[1].get_yscale() == "log"
    check_told_apart([root, largest])
    assert root.get_color() != largest.get_color()
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["root mean square", "largest"]


class Shape:
    """What reading pictures needs of a model."""

    def __init__(self, shape, preprocessing):
        self.image_shape, self.preprocessing = shape, preprocessing


@pytest.mark.parametrize(("fit", "background"), [("crop", 255), ("pad", (10, 200, 30))])
def test_pictures_are_read_as_in_training(tmp_path, fit, background):
    random = np.random.default_rng(0)
    for name, size in (("b", (9, 14, 4)), ("a", (20, 8, 4))):
        Image.fromarray(random.integers(0, 255, size, np.uint8)).save(tmp_path / f"{name}.png")
    model = Shape((3, 8, 13), (fit, background))
    given = background if isinstance(background, int) else list(background)
    trained, _ = open_dataset(
        str(tmp_path), image_size=(8, 13), channels=3, fit=fit, background=given, labels=False
    ).batch([0, 1])
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "sub" / "c.png")
    names, pictures, failures = read_folder(tmp_path, model)
    assert names == ["a", "b"]
    assert len(failures) == 1
    assert "sub" in failures[0]
    torch.testing.assert_close(pictures, trained.float() / 127.5 - 1)
    assert torch.equal(pictures[1:], read_fitted(tmp_path / "b.png", model))


def test_a_picture_of_one_row_of_pixels_is_edited_too(tmp_path):
    """A data set leaves it out; here somebody asked for this very picture."""
    Image.fromarray(np.full((1, 5, 3), (9, 100, 250), np.uint8)).save(tmp_path / "thin.png")
    names, pictures, failures = read_folder(tmp_path, Shape((3, 4, 4), ("crop", 255)))
    assert (names, failures) == (["thin"], [])
    levels = (torch.tensor([9, 100, 250]) / 127.5 - 1)[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(pictures[0], levels)


def test_folder_without_a_picture_says_what_was_left_out(tmp_path):
    model = Shape((3, 4, 4), ("crop", 255))
    with pytest.raises(UserError, match=r"no pictures in .*: looked for [^;]*$"):
        read_folder(tmp_path, model)
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "sub" / "a.png")
    with pytest.raises(UserError, match=r"no pictures in .*: looked for .*; left out: .*sub: \S"):
        read_folder(tmp_path, model)
