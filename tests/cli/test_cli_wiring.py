"""Every flag of a command arrives where it belongs: the call in which the command ends, argument by argument."""

import importlib
import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from PIL import Image
from tiny import tiny_model

from ddpm import cli
from ddpm.cli.options import SAMPLING
from ddpm.common.pixels import to_float
from ddpm.data.images import read_image
from ddpm.model import SamplingOptions

SAMPLED = "--seed 7 --steps 4 --guidance 1.5"  # of the sampling flags, which tests/cli/test_cli_help.py looks at
OPTIONS: dict[str, Any] = {"seed": 7, "steps": 4, "guidance": 1.5}
EDIT = {"sampler": "ancestral", **OPTIONS}
FIRST, SECOND = Path("first.png"), Path("second.png")


class Reached(Exception):
    """The command came to its last call, with these arguments."""


def reach(function: Any) -> Any:
    """A stand-in that stops the command and hands over its arguments by name, those of **options beside the others."""
    signature = inspect.signature(function)
    rest = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.VAR_KEYWORD]

    def stand_in(*given: Any, **named: Any) -> None:
        arguments = signature.bind(*given, **named).arguments
        raise Reached(arguments | {key: value for name in rest for key, value in arguments.pop(name, {}).items()})

    return stand_in


def picture(path: Path) -> torch.Tensor:
    return to_float(read_image(path, channels=1))[None]


def chosen(**fields: Any):
    """Whether options are the defaults with these fields; None of a field means that it may be filled in."""
    return lambda found: found == SamplingOptions(**fields)


def resolved(**fields: Any):
    return lambda found: found == SamplingOptions(**fields).resolved(tiny_model(classes=3))


def editing(**fields: Any):
    return lambda found: found.options == SamplingOptions(**fields)


def of(**fields: Any):
    """Whether an object has these attributes, dotted ones included."""

    def check(found: Any) -> bool:
        for name, value in fields.items():
            here = found
            for part in name.split("__"):
                here = getattr(here, part)
            if here != value:
                return False
        return True

    return check


ROWS = [  # the words of a command, the function in which it ends, and its arguments there, or a test of them
    (
        f"sample M --num 3 --columns 2 --out new.png --overwrite --labels 1 {SAMPLED}",
        "ddpm.generate:generate",
        {"num": 3, "columns": 2, "out": Path("new.png"), "overwrite": True, "options": resolved(labels="1", **OPTIONS)},
    ),
    (
        f"edit M first.png --strength 0.3 --labels 1 {SAMPLED}",
        "ddpm.editing:sdedit",
        {"strength": 0.3, "images": picture, "editor": editing(labels="1", **EDIT)},
    ),
    (
        f"edit M first.png --to 2 --labels 1 --evaluations 60 --order 1 --depth 0.4 {SAMPLED}",
        "ddpm.editing:translate",
        {
            "source": "1",
            "target": "2",
            "evaluations": 30,
            "order": 1,
            "depth": 0.4,
            "editor": editing(labels="1", **EDIT),
        },
    ),
    (
        f"edit M first.png --invert --evaluations 60 --order 1 --out new.png {SAMPLED}",
        "ddpm.editing:reconstructions",
        {"images": picture, "evaluations": 60, "order": 1, "editor": editing(**EDIT)},
    ),
    (
        f"edit M first.png --curve --out taken.png --overwrite {SAMPLED}",
        "ddpm.editing:fidelity_curve",
        {"images": picture, "editor": editing(**EDIT)},
    ),
    (
        "interpolate M first.png second.png --num 3 --depths 0.25,0.5 --labels 1 --out taken.png --overwrite "
        f"{SAMPLED}",
        "ddpm.editing:coarse_to_fine",
        {
            "first": lambda found: torch.equal(found, picture(FIRST)[0]),
            "second": lambda found: torch.equal(found, picture(SECOND)[0]),
            "weights": [0, 0.5, 1],
            "depths": [0.25, 0.5],
            "editor": editing(labels="1", **EDIT),
        },
    ),
    (
        f"trace M --forward first.png --num 3 --frames 5 --frame-spacing log_snr --columns 2 {SAMPLED}",
        "ddpm.plotting.trace:trace_model",
        {"num": 3, "frames": 5, "frame_spacing": "log_snr", "columns": 2, "seed": 7, "steps": 4, "guidance": 1.5}
        | {"sampler": "ancestral", "image": lambda found: torch.equal(found, picture(FIRST)[0])},
    ),
    (
        "trace --forward first.png --schedule cosine --timesteps 30 --frames 5 --frame-spacing log_snr --seed 7",
        "ddpm.plotting.trace:trace_forward",
        {"frames": 5, "frame_spacing": "log_snr", "seed": 7, "schedule": lambda found: found.timesteps == 30}
        | {"image": lambda found: found.shape == (3, 8, 8)},
    ),
    (
        "trace M --fps 7 --hold 0.5 --out taken.gif --overwrite",
        "ddpm.plotting.animation:Trajectory.save",
        {"path": Path("taken.gif"), "fps": 7, "hold": 0.5, "overwrite": True},
    ),
    (
        "evaluate M --data D --metrics kid,drift --features builtin --num 30 --test T --fit pad --sampler ddim --force "
        f"--out taken.json --overwrite --labels 1 {SAMPLED}",
        "ddpm.evaluation.evaluate:evaluate",
        {"candidate": "M", "data": "D", "metrics": ["kid", "drift"], "features": "builtin", "num": 30, "test": "T"}
        | {"fit": "pad", "force": True, "pictures": Path("taken")}
        | {"options": chosen(sampler="ddim", labels="1", **OPTIONS)},
    ),
    ("evaluate M --data D", "ddpm.evaluation.evaluate:evaluate", {"options": None, "metrics": None, "force": False}),
    (
        "evaluate M --data D --sweep --metrics kid --sampler ddim,heun --steps 5,9 --features builtin --num 30 "
        "--test T --fit pad --force --out new.json --seed 7",
        "ddpm.evaluation.sweep:sweep",
        {"data": "D", "metric": "kid", "samplers": ["ddim", "heun"], "evaluations": [5, 9], "features": "builtin"}
        | {"num": 30, "test": "T", "fit": "pad", "force": True, "pictures": Path("new"), "options": chosen(seed=7)},
    ),
    (
        "restore M first.png --task superresolve --scale 4 --filter bicubic --method ddrm --noise 0.2 --degrade "
        f"--samples 3 --option eta=0.5 --labels 1 --out new.png --overwrite {SAMPLED}",
        "ddpm.restoration.job:restore_file",
        {
            "source": FIRST,
            "out": Path("new.png"),
            "overwrite": True,
            "settings": of(
                task__name="superresolve",
                task__scale=4,
                task__filter="bicubic",
                task__seed=7,
                method="ddrm",
                noise=0.2,
                degrade=True,
                samples=3,
                options={"eta": 0.5},
                sampling=SamplingOptions(labels="1", **OPTIONS),
            ),
        },
    ),
    (
        "restore M pictures --task deblur --kernel box:3 --noise auto --out new --overwrite",
        "ddpm.restoration.job:restore_folder",
        {"source": Path("pictures"), "out": Path("new"), "overwrite": True}
        | {"settings": of(task__kernel="box:3", noise=None, degrade=False, samples=1, method="ddnm")},
    ),
    (
        "restore M first.png --task inpaint --mask half",
        "ddpm.restoration.job:restore_file",
        {"out": Path("restored.png"), "overwrite": False, "settings": of(task__mask="half", noise=0.0)},
    ),
    (
        "distill M --steps 5 --teacher-steps 10 --method consistency --guidance 1.5 --data D --minutes 3 --out new "
        "--overwrite --training.batch_size 5",
        "ddpm.distillation.distiller:distill",
        {"out": Path("new"), "minutes": 3, "overwrite": True, "evaluator": None}
        | {
            "config": of(
                distillation__steps=5,
                distillation__teacher_steps=10,
                distillation__method="consistency",
                distillation__guidance=1.5,
                distillation__teacher="M",
                data__source="D",
                training__batch_size=5,
            )
        },
    ),
    ("distill M --steps 5 --dry-run --data D", "ddpm.distillation.distiller:dry_run", {"out": Path("runs/M-5")}),
    (
        "train tiny.yaml --data D --out new --init M --overwrite --training.steps 9 --training.evaluate_every 3",
        "ddpm.training.trainer:train",
        {"out": Path("new"), "init": "M", "resume": False, "overwrite": True}
        | {"evaluator": callable, "config": of(data__source="D", training__steps=9)},
    ),
    (
        "train --resume run --data D --training.steps 9",
        "ddpm.training.trainer:train",
        {"out": Path("run"), "resume": True, "init": None, "overwrite": False, "evaluator": None}
        | {"config": of(data__source="D", training__steps=9, training__batch_size=4)},
    ),
    ("train tiny.yaml --dry-run --init M", "ddpm.training.dry_run:dry_run", {"init": "M"}),
    ("train tiny.yaml --minutes 2 --init M", "ddpm.training.dry_run:fit_to_minutes", {"minutes": 2, "init": "M"}),
    (
        "convert first.png new --flags '--image_size 8' --overwrite",
        "ddpm.interop.convert:convert",
        {"source": FIRST, "destination": Path("new"), "flags": "--image_size 8", "overwrite": True, "origin": None},
    ),
    (
        "export M --to onnx --out new --steps 4 --guidance 1.5 --sampler ddim --eta 0.5 --spacing uniform --overwrite",
        "ddpm.export.onnx_files:export_onnx",
        {"folder": Path("new"), "overwrite": True}
        | {"options": chosen(steps=4, guidance=1.5, sampler="ddim", eta=0.5, spacing="uniform")},
    ),
    ("export M --to web --out new", "ddpm.export.web:export_web", {"folder": Path("new"), "overwrite": False}),
    (
        "plot schedule --names linear,cosine --timesteps 30 --zero-terminal-snr --out taken.png --overwrite",
        "ddpm.plotting.plots:schedules",
        {"names": ["linear", "cosine"], "timesteps": 30, "zero_terminal_snr": True},
    ),
    (
        "plot loss M --data D --num 5 --seed 7 --out new.png --overwrite",
        "ddpm.plotting.plots:loss_by_timestep",
        {"data": "D", "num": 5, "seed": 7, "models": lambda found: list(found) == ["M"]},
    ),
    (
        f"plot classes M --columns 3 --out new.png --overwrite {SAMPLED}",
        "ddpm.plotting.plots:samples_by_class",
        {"columns": 3, "seed": 7, "steps": 4, "guidance": 1.5},
    ),
    (
        f"plot neighbours M --data D --num 3 --neighbours 5 --out new.png --overwrite {SAMPLED}",
        "ddpm.plotting.plots:nearest_neighbours",
        {"data": "D", "num": 3, "neighbours": 5, "seed": 7, "steps": 4},
    ),
    (
        "plot quality points.json --out new.png --overwrite",
        "ddpm.plotting.plots:quality",
        {"points": Path("points.json")},
    ),
    (
        "plot progress run --rows 2 --columns 3 --out new.png --overwrite",
        "ddpm.plotting.plots:training_progress",
        {"run": Path("run"), "rows": 2, "columns": 3},
    ),
    (
        f"plot compare one=M two=M --columns 3 --out new.png --overwrite {SAMPLED}",
        "ddpm.plotting.plots:comparison",
        {"columns": 3, "seed": 7, "models": lambda found: list(found) == ["one", "two"]},
    ),
    (
        "plot schedule --out taken.png --overwrite",
        "ddpm.plotting.plots:save_figure",
        {"path": Path("taken.png"), "overwrite": True},
    ),
    (
        "data pictures --image-size 9 --channels 1 --fit pad --out taken.png --overwrite",
        "ddpm.data.datasets:make_ready",
        {"config": of(source="pictures", image_size=9, channels=1, fit="pad", labels=False)},
    ),
]
KNOWN_ELSEWHERE = {  # commands and flags with tests of their own
    "push": "tests/cli/test_cli_convert.py",
    "app": "tests/app",
    "info": "tests/cli/test_cli_info.py",
    "presets": "tests/training/test_training_cli.py",
    "--metadata": "tests/cli/test_cli_info.py",
    "--help": "tests/cli/test_cli_help.py",
}
TINY = """\
data: {source: digits, image_size: 8, channels: 1}
network: {channels: 8, channel_mult: [1, 2], blocks: 1, attention: [4], groups: 4}
training: {steps: 5, batch_size: 4, warmup: 1, evaluate_every: 0}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with pictures, a configuration and a run; "M" is a model."""
    monkeypatch.chdir(tmp_path)
    for level, path in enumerate((FIRST, SECOND, Path("pictures/a.png"), Path("taken.png"), Path("taken.gif"))):
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 40 + 30 * level).save(path)
    for name in ("taken.json", "points.json", "tiny.yaml", "run/config.yaml", "run/metrics.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(yaml.safe_dump(yaml.safe_load(TINY)))

    def load(name: str, **where: Any):
        assert name == "M"
        return tiny_model(classes=3)

    monkeypatch.setattr("ddpm.model.load", load)
    monkeypatch.setattr("ddpm.evaluation.opening.open_candidate", lambda name, **_: load(name))


@pytest.mark.parametrize(("words", "target", "expected"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_flags_arrive_where_the_command_ends(here, monkeypatch, words, target, expected):
    place, _, name = target.partition(":")
    home: Any = importlib.import_module(place)
    *owners, name = name.split(".")
    for owner in owners:
        home = getattr(home, owner)
    monkeypatch.setattr(home, name, reach(getattr(home, name)))
    with pytest.raises(Reached) as caught:
        cli.run(shlex.split(words))
    (arguments,) = caught.value.args
    for key, value in expected.items():
        found = arguments[key]
        if value is picture:
            assert torch.equal(found, picture(FIRST))
        elif callable(value):
            assert value(found), (key, found)
        else:
            assert found == value, key
    assert "model" not in arguments or arguments["model"].image_shape == (1, 8, 8)


def commands() -> dict[str, Any]:
    whole: Any = typer.main.get_command(cli.app)
    plots = {f"plot {name}": command for name, command in whole.commands["plot"].commands.items()}
    return {name: command for name, command in whole.commands.items() if name != "plot"} | plots


def test_every_flag_of_every_command_has_a_row():
    missing = []
    for name, command in commands().items():
        if name in KNOWN_ELSEWHERE:
            continue
        rows = [shlex.split(words) for words, *_ in ROWS if words.startswith(name + " ")]
        given = {word for row in rows for word in row}
        for parameter in command.params:
            flags = set(parameter.opts)
            if parameter.param_type_name == "option" and parameter.name not in SAMPLING:
                missing += [(name, *flags)] if not flags & (given | set(KNOWN_ELSEWHERE)) else []
    assert not missing
