"""The figures show what the models draw and what the data hold."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddpm.cli import run
from ddpm.common.errors import UserError
from ddpm.common.pixels import save_grid, save_picture, to_float, to_uint8
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.plotting import plots as figures

pytest.importorskip("matplotlib")

SCHEDULE = NoiseSchedule(make_betas("linear", 50, 1e-3, 0.2))


class Ideal(nn.Module):
    """The exact ε̂ where every pixel is N(class / 4, 0.3²)."""

    def __init__(self):
        super().__init__()
        self.deviation = nn.Parameter(torch.tensor(0.3))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        signal, sigma = SCHEDULE.alpha_sigma(t[0].item())
        mean = 0.0 if labels is None else labels[:, None, None, None] / 4
        return sigma * (x_t - signal * mean) / (signal**2 * self.deviation**2 + sigma**2)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Ideal(), GaussianDiffusion(SCHEDULE), image_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def classed() -> Model:
    return Model(Ideal(), GaussianDiffusion(SCHEDULE), image_shape=(1, 8, 8), class_names=["zero", "one", "two"])


@pytest.fixture
def data(tmp_path) -> str:
    """120 images of that very distribution, in a file."""
    pixels = torch.randn(120, 8, 8, 1, generator=torch.Generator().manual_seed(0)) * 0.3
    np.savez(tmp_path / "data.npz", arr_0=to_uint8(pixels).numpy(), arr_1=np.zeros(120, dtype=np.int64))
    return str(tmp_path / "data.npz")


def shown(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def table(images: Tensor) -> np.ndarray:
    """What a table of these (rows, columns, C, H, W) looks like."""
    pixels = to_uint8(images)[:, :, 0]
    rows, columns, height, width = pixels.shape
    grid = np.full((2 + rows * (height + 2), 2 + columns * (width + 2)), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            grid[2 + r * (height + 2) :, 2 + c * (width + 2) :][:height, :width] = pixels[r, c]
    return grid


def test_data_is_brought_to_a_model_as_its_training_images_were(tmp_path):
    Image.new("L", (32, 16), 255).save(tmp_path / "wide.png")
    provenance = {"config": {"data": {"fit": "pad", "background": 0}}}
    padded = Model(Ideal(), GaussianDiffusion(SCHEDULE), image_shape=(1, 8, 8), provenance=provenance)
    rows = figures.matching_data(padded, str(tmp_path), labels=False).batch([0])[0][0, 0].float().mean(1)
    assert rows.tolist() == [0, 0, 255, 255, 255, 255, 0, 0]


def test_the_loss_of_an_exact_network_is_the_closed_form(model, data):
    """E|ε-ε̂|² = ᾱv/(ᾱv+1-ᾱ), the variance of ε given x_t."""
    times = [0, 10, 30, 49]
    held = figures.matching_data(model, data, labels=False)
    losses = figures.epsilon_losses(model, held, times, num=120, seed=1).mean(1)
    for t, loss in zip(times, losses.tolist(), strict=True):
        alpha_bar = SCHEDULE.alpha_bar(t)
        assert loss == pytest.approx(alpha_bar * 0.09 / (alpha_bar * 0.09 + 1 - alpha_bar), rel=0.06)


def test_loss_by_timestep_has_a_curve_a_model(model, data):
    lines = figures.loss_by_timestep({"a": model, "b": model}, data, num=8, points=6).axes[0].lines
    assert len(lines) == 2
    assert list(lines[0].get_xdata()) == [0, 10, 20, 29, 39, 49]
    np.testing.assert_array_equal(lines[0].get_ydata(), lines[1].get_ydata())


@pytest.fixture
def flat_classes(tmp_path):
    """flat_classes(**levels) -> a folder of 20 images a class, each of the class's own level throughout."""

    def make(**levels: float) -> str:
        for name, level in levels.items():
            for number in range(20):
                save_picture(to_uint8(torch.full((1, 8, 8), level)), tmp_path / "set" / name / f"{number}.png")
        return str(tmp_path / "set")

    return make


@pytest.mark.parametrize(
    ("class_names", "levels"),
    [
        (["zero", "one", "two"], {"one": 0.25, "two": 0.5}),
        (["0", "1", "2"], {"cat": 0.0, "dog": 0.25, "horse": 0.5}),
    ],
    ids=["by name", "by number where there are no names"],
)
def test_the_loss_is_of_each_image_s_own_class(flat_classes, class_names, levels):
    """Where every image is its class's mean, |ε-ε̂|² = (ᾱv/(ᾱv+1-ᾱ))² ε²."""
    model = Model(Ideal(), GaussianDiffusion(SCHEDULE), image_shape=(1, 8, 8), class_names=class_names)
    curve = figures.loss_by_timestep({"a": model}, flat_classes(**levels), num=60, points=6).axes[0].lines[0]
    for t, loss in zip(curve.get_xdata()[1:3], curve.get_ydata()[1:3], strict=True):
        alpha_bar = SCHEDULE.alpha_bar(t)
        assert loss == pytest.approx((alpha_bar * 0.09 / (alpha_bar * 0.09 + 1 - alpha_bar)) ** 2, rel=0.15)


def test_a_class_of_the_data_that_the_model_does_not_know_is_named(classed, flat_classes):
    with pytest.raises(UserError, match="no class 'four'"):
        figures.loss_by_timestep({"a": classed}, flat_classes(four=0.0, one=0.25))


def test_a_row_of_samples_for_each_class(classed):
    drawn = figures.samples_by_class(classed, columns=4, steps=3, precision="fp32")
    samples = classed.sample(12, labels="all", steps=3, precision="fp32")
    expected = torch.stack([samples[label::3] for label in range(3)])
    np.testing.assert_array_equal(shown(drawn), table(expected))
    assert [text.get_text() for text in drawn.axes[0].get_yticklabels()] == ["zero", "one", "two"]


def test_an_unconditional_model_has_no_classes_to_show(model):
    with pytest.raises(UserError, match="without classes"):
        figures.samples_by_class(model)


def test_a_copied_image_is_its_own_nearest_neighbour(model, tmp_path):
    samples = model.sample(3, steps=4)
    others = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    training = to_uint8(torch.cat([others, samples[[2, 0, 1]], others.flip(0)])).permute(0, 2, 3, 1)
    np.savez(tmp_path / "data.npz", arr_0=training.numpy())
    pixels = shown(figures.nearest_neighbours(model, str(tmp_path / "data.npz"), num=3, neighbours=2, steps=4))
    flat = training.reshape(-1, 64).double()
    distance = (to_uint8(samples).reshape(3, 1, 64).double() - flat).norm(dim=2)
    found = to_float(training[distance.argsort(dim=1, stable=True)[:, :2]].permute(0, 1, 4, 2, 3))
    np.testing.assert_array_equal(pixels, table(torch.cat([samples[:, None], found], 1)))
    np.testing.assert_array_equal(pixels[:, 2:10], pixels[:, 12:20])


def test_fewer_training_images_than_neighbours(model, tmp_path):
    np.savez(tmp_path / "two.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    pixels = shown(figures.nearest_neighbours(model, str(tmp_path / "two.npz"), num=1, neighbours=6, steps=2))
    assert pixels.shape == (12, 2 + 3 * 10)


def test_neighbours_need_no_classes_of_the_data(classed, tmp_path):
    np.savez(tmp_path / "two.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    pixels = shown(figures.nearest_neighbours(classed, str(tmp_path / "two.npz"), num=1, neighbours=2, steps=2))
    assert pixels.shape == (12, 2 + 3 * 10)


def test_models_are_compared_at_the_same_seeds(model):
    drawn = figures.comparison({"a": model, "b": model}, columns=3, steps=3, seed=5)
    np.testing.assert_array_equal(shown(drawn), table(model.sample(3, steps=3, seed=5).expand(2, -1, -1, -1, -1)))


def test_models_of_two_shapes_are_not_compared(model):
    other = Model(Ideal(), GaussianDiffusion(SCHEDULE), image_shape=(1, 4, 4))
    with pytest.raises(UserError, match="different shapes"):
        figures.comparison({"a": model, "b": other})


@pytest.fixture
def run_directory(tmp_path):
    """Previews of 7 images at 5 steps, as training writes them, each image of one level that rises with the step."""
    (tmp_path / "config.yaml").write_text("data: {image_size: 8}\n")
    for number, step in enumerate((100, 200, 300, 400, 500)):
        levels = torch.arange(7).reshape(7, 1, 1, 1) * 10 + number
        save_grid(to_float(levels.expand(7, 1, 8, 8)), tmp_path / "samples" / f"{step:06d}.png")
    return tmp_path


def test_training_progress_follows_each_seed(run_directory):
    drawn = figures.training_progress(run_directory, rows=7, columns=3)
    levels = torch.arange(7).reshape(7, 1) * 10 + torch.tensor([[0, 2, 4]])
    np.testing.assert_array_equal(shown(drawn), table(to_float(levels.reshape(7, 3, 1, 1, 1).expand(7, 3, 1, 8, 8))))
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["100", "300", "500"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no previews"):
        figures.training_progress(tmp_path)
    (tmp_path / "samples").mkdir()
    save_grid(torch.zeros(4, 1, 8, 8), tmp_path / "samples" / "000001.png")
    with pytest.raises(UserError, match=r"config\.yaml"):
        figures.training_progress(tmp_path)


def test_quality_reads_what_a_sweep_writes(tmp_path):
    rows = [
        {"sampler": name, "steps": n, "evaluations": n, "metrics": {"fid": {"value": v, "title": "FID"}}}
        for name, n, v in [("ddim", 20, 7.0), ("ddim", 10, 13.4), ("dpm++", 10, 5.0)]
    ]
    (tmp_path / "points.json").write_text(json.dumps(rows))
    drawn = figures.quality(tmp_path / "points.json").axes[0]
    assert list(drawn.lines[0].get_xdata()) == [10, 20]
    assert list(drawn.lines[0].get_ydata()) == [13.4, 7.0]
    assert drawn.get_ylabel() == "FID"


@pytest.mark.parametrize("text", ["", "{}", "[]", '[{"sampler": 1}]', "[1]", "null"])
def test_quality_refuses_anything_else(tmp_path, text):
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(UserError, match="--sweep"):
        figures.quality(tmp_path / "points.json")


def test_commands_write_figures(tmp_path, run_directory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["plot", "schedule", "--names", "linear,cosine", "--timesteps", "40"]) == 0
    assert run(["plot", "progress", str(run_directory), "--out", "p.svg"]) == 0
    assert capsys.readouterr().out.split() == ["schedule.pdf", "p.svg"]
    assert (tmp_path / "schedule.pdf").read_bytes().startswith(b"%PDF")


def test_a_missing_matplotlib_is_noticed_before_anything_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["plot", "classes", "not looked at yet"]) == 2
    assert "pip install 'ddpm-kit[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["schedule", "--names", "linear,cosin"], "cosin"),
        (["schedule", "--names", ","], "no schedule is named"),
        (["schedule", "--out", "a.gif"], ".pdf or .svg or .png"),
        (["loss", "digits", "--data", "digits", "--num", "0"], "--num"),
        (["neighbours", "digits", "--data", "digits", "--num", "-1"], "--num"),
        (["neighbours", "digits", "--data", "digits", "--neighbours", "0"], "--neighbours"),
        (["progress", "nowhere"], "no previews"),
        (["quality", "nowhere.json"], "nowhere.json"),
        (["classes", "nowhere"], "nowhere"),
        (["compare", "digits", "digits"], "TITLE=MODEL"),
        (["pie"], "pie"),
    ],
)
def test_commands_complain_in_one_line(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert run(["plot", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm: error: ")
    assert error.count("\n") == 1
    assert word in error
    assert list(tmp_path.iterdir()) == []
