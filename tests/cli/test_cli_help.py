"""Help is quick and complete: no command waits for PyTorch to explain itself, and every field is listed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ddpm.cli import app, run
from ddpm.cli.evaluate import METRIC_NAMES
from ddpm.cli.options import SAMPLING, sampling_flags
from ddpm.common.names import SamplerName
from ddpm.evaluation.metrics import METRICS
from ddpm.model import SamplingOptions
from ddpm.samplers import SAMPLERS
from ddpm.training.config import Config, load_config, preset_names
from ddpm.training.fields import annotated_yaml, fields, fields_help

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
HEAVY = ("torch", "numpy", "PIL", "gradio", "matplotlib", "accelerate", "datasets", "huggingface_hub")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["-h"],
        ["--version"],
        ["presets"],
        ["presets", "--help"],
        ["train", "digits", "--help"],
        ["plot", "-h"],
    ]
    + [[name, "--help"] for name in COMMANDS],
    ids=" ".join,
)
def test_help_loads_no_heavy_library(words):
    code = (
        f"import sys; from ddpm.cli import run; code = run({words!r}); print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_the_overview_begins_somewhere_and_cuts_no_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert "..." not in shown.partition("Commands:")[2]
    assert "ddpm sample digits" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["sample"],
            [
                "Missing argument 'MODEL'",
                "'digits', 'digits4', a run directory",
                "see 'ddpm sample --help'",
            ],
        ),
        (["export", "digits", "--to", "web"], ["Missing option '--out': the folder to write; see"]),
        (["plot"], ["Missing command", "see 'ddpm plot --help'"]),
        (["smaple"], ["see 'ddpm --help'"]),
        (["sample", "digits", "--lables", "all"], ["--labels", "see 'ddpm sample --help'"]),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_mistake_in_a_command_is_one_line_with_the_way_out(capsys, words, said):
    assert run(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm: error: ")
    assert error.count("\n") == 1
    assert "Usage" not in error
    assert all(text in error for text in said)


def test_import_ddpm_loads_no_torch():
    code = (
        "import sys, ddpm; assert 'torch' not in sys.modules; ddpm.load; assert 'torch' in sys.modules; ddpm.samplers"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_exist():
    code = "import ddpm; [getattr(ddpm, name) for name in ddpm.__all__]; assert set(dir(ddpm)) == set(ddpm.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_lazy_packages_raise_attribute_error_for_an_unknown_name():
    import ddpm.networks

    with pytest.raises(AttributeError, match=r"'ddpm\.networks' has no attribute 'VNet'"):
        ddpm.networks.VNet  # noqa: B018


def test_fields_have_a_description_and_a_kind():
    listed = list(fields())
    assert len(listed) == sum(len(section.annotation.model_fields) for section in Config.model_fields.values())
    assert all(field.description and field.kind for field in listed)


@pytest.mark.parametrize("preset", preset_names())
def test_presets_print_yaml_that_gives_the_same_configuration(preset, tmp_path):
    text = annotated_yaml(load_config(preset))
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert load_config(path) == load_config(preset)
    assert all("# " in line for line in text.splitlines() if line.startswith("  "))


def test_train_help_lists_every_flag_with_the_values_of_a_preset(capsys):
    assert run(["train", "digits", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {field.flag} (" in shown for field in fields())
    assert "--data.image_size" in shown
    assert "; now v)" in shown


def test_fields_help_shows_ranges_choices_and_defaults():
    shown = fields_help()
    assert "--network.dropout (number, ≥ 0, < 1; default 0.0)" in shown
    assert "--diffusion.prediction (epsilon | x_0 | v; default epsilon)" in shown
    assert "--network.head_dim (whole number or null, ≥ 1; default null)" in shown


@pytest.mark.parametrize("field", list(fields()), ids=lambda field: field.flag)
def test_defaults_are_yaml_that_the_field_accepts(field):
    value = yaml.safe_load(field.default)
    section = Config.model_fields[field.section].annotation
    assert getattr(section.model_validate({field.name: value}), field.name) == getattr(section(), field.name)


def test_sampling_flags_have_the_defaults_of_sampling_options():
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingOptions)}
    assert {name: default for name, (_, default) in SAMPLING.items()} == defaults


def test_sampling_flags_hand_over_what_is_given():
    received = []

    def command(num: int = 3, *, sampling: dict[str, Any]) -> None:
        received.append((num, sampling))

    tool = typer.Typer(rich_markup_mode=None)
    tool.command()(sampling_flags(steps=7, without=["labels"], sampler="ddim")(command))
    given = "--num 5 --clip none --eta 0.5 --guidance 0 --guidance-interval 0.3 5"
    result = CliRunner().invoke(tool, given.split())
    assert result.exit_code == 0, result.output
    assert received == [
        (
            5,
            {
                "guidance": 0.0,
                "guidance_interval": (0.3, 5.0),
                "guidance_rescale": 0.0,
                "sampler": "ddim",
                "eta": 0.5,
                "clip": None,
                "seed": 0,
                "precision": "auto",
            },
        )
    ]
    assert "default: 7, or T" in " ".join(CliRunner().invoke(tool, ["--help"]).output.split())
    assert CliRunner().invoke(tool, ["--labels", "3"]).exit_code == 2


SAMPLING_COMMANDS = {
    "sample": [],
    "trace": ["batch_size"],
    "plot classes": ["labels"],
    "plot neighbours": [],
    "plot compare": [],
}


@pytest.mark.parametrize(("name", "lacks"), SAMPLING_COMMANDS.items())
def test_commands_that_sample_have_the_same_flags(name, lacks):
    part: Any = typer.main.get_command(app)
    for word in name.split():
        part = part.commands[word]
    flags = {parameter.name: parameter for parameter in part.params}
    assert set(SAMPLING) - set(flags) == set(lacks)
    reference: Any = typer.main.get_command(app).commands["sample"]
    for parameter in reference.params:
        if parameter.name in set(SAMPLING) & set(flags) - {"steps"}:
            assert flags[parameter.name].help == parameter.help
            assert flags[parameter.name].opts == parameter.opts


def test_references_are_current():
    """Write them with `python tools/make_reference.py`."""
    tool = Path(__file__).parents[2] / "tools" / "make_reference.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_version_is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


def test_names_in_help_are_those_of_the_registries():
    assert list(get_args(SamplerName)) == list(SAMPLERS)
    assert list(METRIC_NAMES) == list(METRICS)


def test_presets_are_grouped_by_hardware(capsys):
    assert run(["presets"]) == 0
    shown = capsys.readouterr().out
    cpu, gpu = shown.split("On a GPU:")
    assert all(f"  {name} " in shown for name in preset_names())
    assert "GPU" not in cpu.removeprefix("On a CPU:")
    assert "CPU cores" not in gpu


@pytest.mark.parametrize("when", ["importing", "running"])
def test_ctrl_c_prints_one_line_and_exits_with_130(when, tmp_path):
    """A package that interrupts its own import stands for a Ctrl-C in the seconds that PyTorch takes to load."""
    # a test run in the background of a shell ignores SIGINT, and so would the command
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    if when == "importing":
        (tmp_path / "torch.py").write_text(f"{interrupt}\nimport time; time.sleep(30)")
        code = "from ddpm.cli import main; main()"
    else:
        code = f"import ddpm.model\ndef load(name):\n  {interrupt}\n"
        code += "ddpm.model.load = load\nfrom ddpm.cli import main; main()"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", heed + code, "sample", "digits", "--out", str(tmp_path / "x.png")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr) == (130, "ddpm: error: interrupted\n")
