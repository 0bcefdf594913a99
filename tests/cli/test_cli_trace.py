"""`ddpm trace` as a command."""

import sys

import pytest
import torch
from PIL import Image

from ddpm.cli import run
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(
            NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[], groups=4), (8, 8), 3, 3, None
        )
    process = GaussianDiffusion(NoiseSchedule(make_betas("linear", 20, 1e-3, 0.3)))
    place = tmp_path_factory.mktemp("model") / "tiny"
    Model(network, process, image_shape=(3, 8, 8)).save(place)
    return str(place)


@pytest.fixture
def photograph(tmp_path) -> str:
    Image.new("RGBA", (50, 30), (200, 10, 10, 128)).save(tmp_path / "photograph.png")
    return str(tmp_path / "photograph.png")


def frames_of(path) -> int:
    with Image.open(path) as image:
        return image.n_frames


def test_trace_animates_the_reverse_process(folder, tmp_path, capsys):
    out = tmp_path / "a.gif"
    assert run(["trace", folder, "--steps", "5", "--num", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert frames_of(out) == 6
    for options in (["--sampler", "ddim", "--eta", "0.5"], ["--sampler", "unipc", "--frame-spacing", "log_snr"]):
        assert run(["trace", folder, "--steps", "5", "--frames", "4", "--out", str(out), "--overwrite", *options]) == 0
        assert frames_of(out) == 4


def test_trace_animates_the_forward_process_of_an_image(photograph, tmp_path):
    out = tmp_path / "a.gif"
    assert run(["trace", "--forward", photograph, "--timesteps", "30", "--frames", "7", "--out", str(out)]) == 0
    assert frames_of(out) == 7


def test_trace_joins_both_processes_in_a_strip(folder, photograph, tmp_path):
    out = tmp_path / "a.png"
    assert run(["trace", folder, "--forward", photograph, "--steps", "4", "--frames", "8", "--out", str(out)]) == 0
    with Image.open(out) as strip:
        assert strip.width > 4 * strip.height / 2


def test_trace_without_ffmpeg_names_the_extra_for_mp4_and_writes_gif(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert run(["trace", folder, "--steps", "2", "--out", str(tmp_path / "a.mp4")]) == 2
    said = "an .mp4 needs ffmpeg: run pip install 'ddpm-kit[video]'; a .gif does without"
    assert capsys.readouterr().err == f"ddpm: error: {said}\n"
    assert run(["trace", folder, "--steps", "2", "--out", str(tmp_path / "a.gif")]) == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "give a MODEL"),
        (["--forward", "nowhere.png"], "nowhere.png"),
        (["nowhere"], "nowhere"),
        (["MODEL", "--steps", "21"], "20 timesteps"),
        (["MODEL", "--labels", "3"], "without classes"),
        (["MODEL", "--sampler", "dim"], "did you mean ddim"),
        (["MODEL", "--sampler", "unipc", "--eta", "1"], "eta"),
        (["MODEL", "--frame-spacing", "even"], "uniform, log_snr"),
        (["MODEL", "--frames", "0"], "--frames"),
        (["MODEL", "--frames", "1"], "--frames"),
        (["MODEL", "--forward", "photograph.png", "--frames", "3"], "at least 4"),
        (["MODEL", "--num", "100000"], "100000"),
        (["MODEL", "--out", "a.avi"], ".gif or .mp4 or .png"),
        (["MODEL", "--out", "taken.gif"], "exists: give another --out"),
        (["MODEL", "--fps", "0"], "frames a second"),
        (["MODEL", "--hold", "700"], "0 to 655"),
        (["MODEL", "--columns", "-1"], "--columns"),
        (["--forward", "photograph.png", "--timesteps", "-1"], "--timesteps"),
        (["--forward", "photograph.png", "--schedule", "cosin"], "cosin"),
    ],
)
def test_trace_reports_bad_input_in_one_line_and_keeps_files(
    folder, photograph, tmp_path, monkeypatch, capsys, arguments, word
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.gif").write_text("mine")
    assert run(["trace", *(folder if argument == "MODEL" else argument for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm: error: ")
    assert error.count("\n") == 1
    assert word in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photograph.png", "taken.gif"]
    assert (tmp_path / "taken.gif").read_text() == "mine"


@pytest.mark.parametrize(("timesteps", "left"), [(50, "60%"), (100, "36%"), (200, "13%"), (1000, None)])
def test_trace_says_how_much_of_the_image_the_last_frame_keeps(photograph, tmp_path, capsys, timesteps, left):
    """Beta from 1e-4 to 0.02 whatever T is: few steps never reach noise, and the strip alone does not say why."""
    out = tmp_path / "strip.png"
    code = run(["trace", "--forward", photograph, "--timesteps", str(timesteps), "--frames", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    assert (code, out.exists()) == (0, True)
    note = f"note: x_T keeps {left} of the image's variance: use more --timesteps or --schedule cosine\n"
    assert printed == f"{note if left else ''}{out}\n"
