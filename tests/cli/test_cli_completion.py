"""What shells are offered, asked as they ask: bash, zsh and fish."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import sys, atexit; from ddpm.cli import run; "
CODE += "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); run([])"
SHELLS = ("bash", "zsh", "fish")

OFFERED = [
    ("ddpm ", {"train", "sample", "plot"}),
    ("ddpm train di", {"digits"}),
    ("ddpm train digits --", {"--out", "--training.steps", "--data.source"}),
    ("ddpm train digits --training.lo", {"--training.log_every", "--training.loggers"}),
    ("ddpm train --resume ru", {"runs/first"}),
    ("ddpm train digits --init u", {"user/faces"}),
    ("ddpm sample digits --sampler dpm", {"dpm++", "dpm++sde"}),
    ("ddpm sample digits --spacing le", {"leading"}),
    ("ddpm sample digits --precision b", {"bf16"}),
    ("ddpm sample ", {"digits", "runs/first", "user/faces"}),
    ("ddpm edit runs/", {"runs/first"}),
    ("ddpm plot classes di", {"digits"}),
    ("ddpm presets cifar10_", {"cifar10_fast", "cifar10_small"}),
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with a run and another folder in runs/, and a Hub cache with a model and another repository."""
    folder = tmp_path_factory.mktemp("completion")
    for path in (
        "runs/first/metrics.jsonl",
        "runs/notes/todo.txt",
        "hub/models--user--faces/snapshots/0/model_index.json",
        "hub/models--user--words/snapshots/0/config.json",
    ):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
    return folder


def ask(shell: str, words: str, folder: Path) -> subprocess.CompletedProcess:
    """Ask as the function that this shell runs on Tab."""
    request = {
        "_DDPM_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "HF_HUB_CACHE": str(folder / "hub"),
    }
    return subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True, env=environment() | request
    )


def environment() -> dict[str, str]:
    """This environment with an absolute PYTHONPATH: commands run in another folder."""
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize(("words", "offered"), OFFERED)
def test_completion_offers_commands_names_and_fields(words, offered, workshop):
    """Without loading PyTorch."""
    done = ask("bash", words, workshop)
    assert offered <= set(done.stdout.split())
    assert not {"runs/notes", "user/words"} & set(done.stdout.split())
    assert done.stderr.split() == ["False"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_is_offered_models(shell, workshop):
    done = ask(shell, "ddpm sample ", workshop)
    assert all(name in done.stdout for name in ("digits", "runs/first", "user/faces"))
    assert "user/words" not in done.stdout


# zsh completes in a terminal only
ZSH = """zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal 'autoload -U compinit; compinit -u; source ./script'
zpty -n -w terminal $'ddpm presets cifar10_\\t'
zpty -r terminal shown '*cifar10_small*'; print -r -- $shown"""


@pytest.mark.parametrize(
    ("shell", "ask_it"),
    [
        ("bash", 'COMP_WORDS=(ddpm presets cifar10_); COMP_CWORD=2; _ddpm_completion ddpm; echo "${COMPREPLY[@]}"'),
        ("fish", "complete -C 'ddpm presets cifar10_'"),
        ("zsh", ZSH),
    ],
)
def test_a_shell_that_has_read_the_script_completes(shell, ask_it, tmp_path):
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} here")
    command = tmp_path / "ddpm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ddpm "$@"\n')
    command.chmod(0o755)
    there = environment() | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = subprocess.run([command], capture_output=True, env=there | {"_DDPM_COMPLETE": f"source_{shell}"}).stdout
    (tmp_path / "script").write_bytes(script)
    ask_it = ask_it if shell == "zsh" else f"source ./script\n{ask_it}"
    done = subprocess.run([path, "-c", ask_it], cwd=tmp_path, capture_output=True, text=True, env=there)
    assert all(name in done.stdout for name in ("cifar10_fast", "cifar10_small")), done.stderr
