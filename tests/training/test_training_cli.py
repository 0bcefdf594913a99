"""`ddpm train` and `ddpm presets` as commands: exit codes, one-line errors and output."""

import re
import tarfile

import pytest
from PIL import Image

from ddpm.cli import run
from ddpm.model import load
from ddpm.training import dry_run, load_config


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


def test_train_names_the_run_after_its_preset_and_resumes_it(command, tmp_path):
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


def test_train_dry_run_prints_the_cost_and_writes_nothing(command, tmp_path):
    code, output, _ = command("train", "tiny.yaml", "--dry-run")
    assert code == 0
    figures = dict(re.findall(r"^(\S.*?)  +(.*)$", output, re.MULTILINE))
    assert figures["parameters"] == "45,065"
    assert {"FLOPs an image", "memory", "engine", "speed", "training", "time"} <= set(figures)
    assert "64 images" in figures["training"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.yaml"]


def test_train_dry_run_says_in_which_number_format_it_computes_and_why(command, monkeypatch):
    monkeypatch.setattr("ddpm.common.hardware.bf16_speedup", lambda: 1.9)
    monkeypatch.setattr("ddpm.training.compute.bf16_speedup", lambda: 1.9)

    def engine(*flags):
        code, output, _ = command("train", "tiny.yaml", "--dry-run", "--training.micro_batch", 4, *flags)
        assert code == 0
        return re.search(r"^engine +cpu, \d+ threads, (.*)$", output, re.MULTILINE)[1]

    layout = "bf16, channels-last, not compiled, micro-batch 4"
    assert engine("--training.precision", "auto") == f"{layout} (bf16 is 1.9 times as fast as fp32 here)"
    assert engine("--training.precision", "bf16") == layout
    assert engine("--training.precision", "fp32") == "fp32, not compiled, micro-batch 4"


def test_train_dry_run_on_streamed_data_counts_no_epochs(command, tmp_path, monkeypatch):
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


def test_train_reads_a_hyphen_as_an_underscore(command):
    words = ["--training.batch-size", 4, "--training.learning-rate=1e-2", "--training.steps", "1e1", "--dry-run"]
    code, output, error = command("train", "tiny.yaml", *words)
    assert (code, error) == (0, "")
    assert re.search(r"^training +10 steps, 40 images", output, re.MULTILINE)


@pytest.mark.parametrize("dry", [True, False])
def test_train_prints_the_notes_of_the_configuration(command, dry):
    code, output, _ = command("train", "tiny.yaml", "--training.steps", 1, *(["--dry-run"] if dry else []))
    assert code == 0
    assert output.startswith("note: training.warmup (3) is longer than the run (1 steps)")
    assert "\nnote: x_T keeps 11% of the image's variance" in output


def test_train_init_accepts_a_run(command):
    assert command("train", "tiny.yaml", "--out", "first", "--training.steps", 1)[0] == 0
    assert command("train", "tiny.yaml", "--out", "second", "--init", "first", "--training.steps", 1)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mnits"], r"no preset 'mnits'; did you mean mnist\?"),
        ([], "give a preset or a YAML file"),
        (["tiny.yaml", "--training.stepz", "3"], r"training has no field 'stepz'; did you mean steps\?"),
        (["tiny.yaml", "--training.steps"], "--training.steps needs a value"),
        (["tiny.yaml", "--training.steps", "--overwrite"], "--training.steps"),
        (["tiny.yaml", "--step", "3"], "--step"),
        (["tiny.yaml", "--steps", "3"], r"there is no option --steps; did you mean --training\.steps\?"),
        (["tiny.yaml", "--batch-size=3"], r"did you mean --training\.batch_size\?"),
        (["tiny.yaml", "--channels", "3"], r"did you mean --data\.channels or --network\.channels\?"),
        (["tiny.yaml", "--overwritten"], r"did you mean --overwrite\?"),
        (["tiny.yaml", "--qqq"], "`ddpm train --help` lists all options"),
        (["--steps", "3"], r"did you mean --training\.steps\?"),
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
def test_train_reports_a_wrong_option_in_one_line(command, tmp_path, words, said):
    code, _, error = command("train", *words)
    assert code == 2
    assert error.startswith("ddpm: error: ")
    assert re.search(said, error), error
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny.yaml"]


def test_train_of_a_folder_says_how_to_train_on_it(command, tmp_path):
    (tmp_path / "my photos").mkdir()
    for name in ("my photos", "./my photos"):
        code, _, error = command("train", name)
        assert code == 2
        assert error.endswith(f"ddpm train folder32 --data '{name}'")


def test_train_exits_with_1_if_the_gradient_is_not_finite(command):
    code, _, error = command("train", "tiny.yaml", "--training.learning_rate", "1e30", "--training.max_bad_steps", 1)
    assert code == 1
    assert "not finite" in error
    assert "learning rate" in error


def test_presets_lists_all_and_prints_one(command):
    code, output, _ = command("presets")
    assert code == 0
    assert re.search(r"^  cifar10 +CIFAR-10 as Ho et al", output, re.MULTILINE)
    code, output, _ = command("presets", "mnist")
    assert code == 0
    assert "learning_rate" in output
    assert command("presets", "mnits")[0] == 2


def test_train_minutes_fit_the_run_to_a_measured_time(command, tmp_path, monkeypatch):
    """0.5 s a step and, for each of 2 previews, 20 forward passes of 8 images, each a third of a step's work."""
    monkeypatch.setattr(dry_run, "seconds_per_step", lambda trainer: 0.5)
    options = ["--training.preview_every", 4, "--training.preview_images", 8, "--out", "run", "--minutes", 1 / 3]
    code, output, _ = command("train", "tiny.yaml", *options)
    assert code == 0
    config = load_config(tmp_path / "run")
    previews = 2 * 20 * 0.5 / 3
    assert config.training.steps == round((20 - previews) / 0.5) == 27
    assert f"{config.training.steps} steps" in output
    assert config.training.warmup == round(3 * 27 / 8)
    assert config.training.ema_decay == pytest.approx(1 - 0.1 * 8 / 27, abs=1e-6)
    assert (config.training.checkpoint_every, config.training.preview_every) == (14, 14)
    assert load(tmp_path / "run").provenance["steps"] == 27


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny.yaml", "--minutes", 5, "--training.steps", 10], "give one of --minutes and --training.steps"),
        (["--resume", "run", "--minutes", 5], "--resume takes everything from the run"),
        (
            ["tiny.yaml", "--minutes", 0.01],
            "a run of 0.01 min is too short: a step takes 0.5 s and a preview 27 s here; give it 1 min or more",
        ),
    ],
)
def test_train_minutes_that_cannot_be_are_refused(command, monkeypatch, words, message):
    monkeypatch.setattr(dry_run, "seconds_per_step", lambda trainer: 0.5)
    code, _, error = command("train", *words)
    assert code != 0
    assert message in error
