"""`ddpm train` and `ddpm presets` as they are typed: exit codes, one-line errors, what is printed."""

import re
import tarfile

import pytest
from PIL import Image

from ddpm.cli import run
from ddpm.training import dry_run


@pytest.fixture
def command(tiny_yaml, tmp_path, monkeypatch, capsys):
    """command("train", "tiny.yaml", …) -> (exit code, output, last line of the errors), in an empty directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny_yaml.read_text())

    def command(*words: object):
        code = run([str(word) for word in words])
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return code, output, errors.splitlines()[-1] if errors else ""

    return command


def test_train_command_runs_resumes_and_overwrites(command, tmp_path):
    code, output, _ = command("train", "tiny.yaml", "--training.steps", 2)
    assert code == 0
    assert output.splitlines()[-1] == "runs/tiny"
    assert (tmp_path / "runs/tiny/model/model_index.json").exists()
    code, _, error = command("train", "tiny.yaml", "--training.steps", 2)
    assert code == 2
    assert error == (
        "ddpm: error: runs/tiny holds a run already: resume it with --resume runs/tiny, give another --out, "
        "or --overwrite"
    )
    assert command("train", "--resume", "runs/tiny", "--training.steps", 3)[0] == 0
    assert (tmp_path / "runs/tiny/checkpoints/000003").is_dir()
    assert command("train", "--training.steps", 1, "tiny.yaml", "--overwrite")[0] == 0  # flags in any order
    assert [path.name for path in (tmp_path / "runs/tiny/checkpoints").iterdir()] == ["000001"]


def test_dry_run_prints_costs_and_writes_nothing(command, tmp_path):
    code, output, _ = command("train", "tiny.yaml", "--dry-run")
    assert code == 0
    figures = dict(re.findall(r"^(\S.*?)  +(.*)$", output, re.MULTILINE))
    assert figures["parameters"] == "45,065"
    assert {"FLOPs an image", "memory", "engine", "speed", "training", "time"} <= set(figures)
    assert "64 images" in figures["training"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.yaml"]


def test_dry_run_on_streamed_data_prints_no_epochs(command, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "LEAST_SECONDS", 0.0)
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number in range(100):
            tar.add(tmp_path / "photo.png", f"{number}.png")
    options = ["--data.streaming", "true", "--data.shuffle_buffer", 1, "--data.labels", "false"]
    code, output, _ = command(
        "train", "tiny.yaml", "--data", "photos.tar", "--training.batch_size", 1, "--dry-run", *options
    )
    assert code == 0
    assert re.search(r"^training +8 steps, 8 images$", output, re.MULTILINE)


def test_train_command_fine_tunes_from_a_run(command):
    assert command("train", "tiny.yaml", "--out", "first", "--training.steps", 1)[0] == 0
    assert command("train", "tiny.yaml", "--out", "second", "--init", "first", "--training.steps", 1)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mnits"], r"no preset 'mnits'; did you mean mnist\?"),
        ([], "name a preset or a YAML file"),
        (["tiny.yaml", "--training.stepz", "3"], r"training has no field 'stepz'; did you mean steps\?"),
        (["tiny.yaml", "--training.steps"], "--training.steps needs a value"),
        (["tiny.yaml", "--training.steps", "--overwrite"], "--training.steps"),
        (["tiny.yaml", "--step", "3"], "--step"),
        (["tiny.yaml", "other.yaml"], "'other.yaml' is not understood"),
        (["tiny.yaml", "--data", "nowhere"], "nowhere"),
        (["tiny.yaml", "--data.image_size", "28", "--network.channel_mult", "[1, 1, 1, 1]"], "divide"),
        (["tiny.yaml", "--network.attention", "[5]"], "network.attention names 5"),
        (["tiny.yaml", "--init", "nowhere"], "no model at nowhere"),
        (["--resume", "nowhere"], "no run in nowhere"),
        (["tiny.yaml", "--resume", "nowhere"], "--resume takes everything from the run"),
        (["--resume", "tiny.yaml", "--network.channels", "3"], "--network.channels cannot change"),
    ],
)
def test_train_command_reports_user_errors_in_one_line(command, tmp_path, words, said):
    code, _, error = command("train", *words)
    assert code == 2
    assert error.startswith("ddpm: error: ")
    assert re.search(said, error), error
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.yaml"]


def test_train_command_exits_with_1_on_nonfinite_loss(command):
    code, _, error = command("train", "tiny.yaml", "--training.learning_rate", "1e30", "--training.max_bad_steps", 1)
    assert code == 1
    assert "not finite" in error
    assert "learning rate" in error


def test_presets_command_lists_and_prints(command):
    code, output, _ = command("presets")
    assert code == 0
    assert re.search(r"^cifar10 +CIFAR-10 as Ho et al", output, re.MULTILINE)
    code, output, _ = command("presets", "mnist")
    assert code == 0
    assert "learning_rate" in output
    assert command("presets", "mnits")[0] == 2
