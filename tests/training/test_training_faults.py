"""What can go wrong around a run: a second run, a full or read-only disk, signals, a kill. Nothing is lost."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from ddpm.common.errors import RunStopped, UserError
from ddpm.data import StreamDataset
from ddpm.model import Model, load
from ddpm.training import train
from ddpm.training.checkpoint import claimed
from ddpm.training.tracking import Previews
from ddpm.training.trainer import Trainer

DDPM = [sys.executable, "-m", "ddpm"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(*words: str | Path, **options) -> subprocess.Popen:
    command = [*DDPM, "train", *map(str, words)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options
    )


def test_train_refuses_a_directory_in_use(tiny, tmp_path):
    first = claimed(tmp_path / "run", resume=False, overwrite=False)
    with first, pytest.raises(UserError, match=f"trained by process {os.getpid()}"):
        train(tiny(steps=1), tmp_path / "run")
    train(tiny(steps=1), tmp_path / "run")


@pytest.mark.parametrize(("text", "said"), [("x" * 1000, "by x{200};"), ("", "by another process;")])
def test_a_refusal_quotes_little_of_what_the_lock_says(tmp_path, text, said):
    with claimed(tmp_path, resume=False, overwrite=False):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(UserError, match=said), claimed(tmp_path, resume=False, overwrite=False):
            pass


def test_train_leaves_the_users_files_in_the_models_place_alone(tiny, tmp_path, capsys):
    """The run goes on and says so; the preview does not go into a card that is the user's."""
    previews = {"preview_every": 1, "preview_images": 1, "preview_steps": 1}
    run = train(tiny(steps=1, **previews), tmp_path / "run")
    shutil.rmtree(run / "model")
    (run / "model").mkdir()
    (run / "model" / "README.md").write_text("my own")
    train(tiny(steps=2, **previews), run, resume=True)
    assert f"{run / 'model'} " in capsys.readouterr().out
    assert [(path.name, path.read_text()) for path in (run / "model").iterdir()] == [("README.md", "my own")]
    assert (run / "checkpoints" / "000002").is_dir()


def test_train_keeps_an_existing_run_without_overwrite(tiny, files, tmp_path, monkeypatch):
    run = train(tiny(steps=1), tmp_path / "run")
    before = files.tensors(run, 1)
    with pytest.raises(UserError, match="--overwrite"):
        train(tiny(steps=1, seed=5), run)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    for wrong in ({"data.source": "nowhere"}, {"training.loggers": ["wandb"]}):  # found out before anything is removed
        with pytest.raises(UserError):
            train(tiny(steps=1, seed=5, **wrong), run, overwrite=True)
    assert files.tensors(run, 1) == before
    train(tiny(steps=1, seed=5), run, overwrite=True)
    assert files.tensors(run, 1) != before


def test_train_refuses_a_directory_with_other_files(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match="not a run"):
            train(tiny(steps=1), tmp_path, **options)
    with pytest.raises(UserError, match="is a file"):
        train(tiny(steps=1), tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="no run"):
        train(tiny(steps=1), tmp_path / "nothing", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_train_does_not_take_a_configuration_file_for_a_run(tiny, tmp_path):
    (tmp_path / "config.yaml").write_text("of another program")
    with pytest.raises(UserError, match="not a run"):
        train(tiny(steps=1), tmp_path, overwrite=True)
    assert (tmp_path / "config.yaml").read_text() == "of another program"


def test_overwrite_removes_only_files_of_a_run(tiny, files, tmp_path):
    run = train(tiny(steps=1), tmp_path / "run")
    (run / "photos").mkdir()
    (run / ".git").write_text("important")
    (run / ".model.new").mkdir()
    (run / "config.yaml").unlink()  # as if killed before all was there
    with pytest.raises(UserError, match="already: give another --out, or --overwrite"):
        train(tiny(steps=2), run)
    train(tiny(steps=2), run, overwrite=True)
    assert (run / "photos").is_dir()
    assert (run / ".git").read_text() == "important"
    assert not (run / ".model.new").exists()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000002"]


def test_train_leaves_nothing_behind_if_it_cannot_start(tiny, tmp_path):
    with pytest.raises(UserError):
        train(tiny(**{"data.source": "nowhere"}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_train_survives_signals(tiny, tiny_yaml, files, tmp_path, number, code):
    """SIGKILL saves nothing, but what it leaves is gone on with: the lock of a dead process holds nobody up."""
    run = tmp_path / "run"
    options = ["--training.lr_schedule", "constant", "--training.steps", 100_000, "--training.checkpoint_every", 2]
    process = start(tiny_yaml, "--out", run, *options)
    files.wait_for_step(run, 3, lambda: process.poll() is None)
    with pytest.raises(UserError, match=f"being trained by process {process.pid}"):
        train(tiny(), run, resume=True)
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    if number != signal.SIGKILL:
        assert f"saved at step {saved:,}" in output
        assert files.records(run, "step")[-1]["step"] == saved
    train(tiny(steps=saved + 3, lr_schedule="constant"), run, resume=True)
    undisturbed = train(tiny(steps=saved + 3, lr_schedule="constant"), tmp_path / "undisturbed")
    assert files.tensors(run, saved + 3) == files.tensors(undisturbed, saved + 3)
    assert files.records(run, "step", "loss") == files.records(undisturbed, "step", "loss")


@contextlib.contextmanager
def largest_file(size: int):
    """A limit on the size of a file stands for a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [10, 1000, 0.999])
def test_train_survives_a_full_disk(tiny, files, tmp_path, capsys, room):
    """`room`: bytes a file may have, or the share of a checkpoint's largest file."""
    config = tiny(steps=4, checkpoint_every=2)
    undisturbed = train(config, tmp_path / "undisturbed")
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "000004")
    if room < 1:
        room = int(room * max(file.stat().st_size for file in (run / "checkpoints" / "000002").iterdir()))
    with pytest.raises(RunStopped, match=r"no space left|File too large") as stopped, largest_file(room):
        train(config, run, resume=True)
    assert "000002" in str(stopped.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000002"]
    train(config, run, resume=True)
    assert files.tensors(run, 4) == files.tensors(undisturbed, 4)
    assert files.records(run, "step", "loss") == files.records(undisturbed, "step", "loss")


def test_full_disk_is_reported_once_with_tensorboard(tiny, tmp_path, monkeypatch):
    """Whose events are in a file of the same disk, and are written once more when it is closed."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # its thread has a traceback of its own
    with pytest.raises(RunStopped, match=r"could not write metrics.jsonl"), largest_file(20_000):
        train(tiny(steps=250, checkpoint_every=250, loggers=["tensorboard"]), tmp_path / "run")


@pytest.mark.parametrize("what", ["evaluation", "preview"])
def test_failed_preview_or_evaluation_loses_no_steps(tiny, files, tmp_path, monkeypatch, capsys, what):
    """Nor does the run fail there again; the best and the metrics are those that were found before."""
    config = tiny(steps=4, checkpoint_every=4, evaluate_every=1, preview_every=1, preview_images=1, preview_steps=2)
    undisturbed = train(config, tmp_path / "undisturbed", evaluator=lambda model: {"fid": 1.0})
    run = tmp_path / "run"

    def evaluator(model):
        if what == "evaluation" and model.provenance["steps"] == 3:
            raise UserError("this evaluation cannot be")
        return {"fid": 1.0}

    draw = Previews.draw

    def too_large(previews, model):
        if model.provenance["steps"] == 3:
            raise torch.OutOfMemoryError
        return draw(previews, model)

    if what == "preview":
        monkeypatch.setattr(Previews, "draw", too_large)
    with pytest.raises((UserError, torch.OutOfMemoryError)):
        train(config, run, evaluator=evaluator)
    assert "saved at step 3" in capsys.readouterr().out
    state = json.loads((run / "checkpoints" / "000003" / "state.json").read_text())
    assert (state["metrics"]["step"], state["best"]["step"]) == (2, 1)
    train(config, run, resume=True, evaluator=evaluator)
    assert files.tensors(run, 4) == files.tensors(undisturbed, 4)


def test_best_model_that_could_not_be_written_is_not_best(tiny, tmp_path, monkeypatch):
    save = Model.save

    def save_but_the_best(model: Model, folder: Path) -> None:
        if folder.name == "best" and model.provenance["steps"] == 2:
            raise OSError(errno.ENOSPC, "")
        save(model, folder)

    values = iter([2.0, 1.0, 1.5])
    config = tiny(steps=3, checkpoint_every=4, evaluate_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Model, "save", save_but_the_best)
        with pytest.raises(RunStopped, match="could not write the evaluation"):
            train(config, tmp_path / "run", evaluator=lambda model: {"fid": next(values)})
    train(config, tmp_path / "run", resume=True, evaluator=lambda model: {"fid": next(values)})
    assert load(tmp_path / "run" / "best").provenance["metrics"] == {"step": 3, "fid": 1.5}


def test_first_signal_is_acknowledged_at_once(tiny, files, tmp_path, capfd):
    said = []

    def evaluator(model):
        signal.raise_signal(signal.SIGINT)
        said.append(capfd.readouterr().err)
        return {"fid": 1.0}

    with pytest.raises(KeyboardInterrupt):
        train(tiny(steps=4, checkpoint_every=4, evaluate_every=2), tmp_path / "run", evaluator=evaluator)
    assert "Stopping after this step" in said[0]
    assert (tmp_path / "run" / "checkpoints" / "000002").is_dir()
    assert files.records(tmp_path / "run", "step", "loss")[-1]["step"] == 2  # not a step later


def test_resume_writes_a_missing_model(tiny, tmp_path, monkeypatch):
    """The checkpoint named as kept is the new one, for which the old has gone."""
    config = tiny(steps=4, checkpoint_every=2, keep_checkpoints=1, evaluate_every=3, preview_every=2, preview_images=1)
    save = Model.save

    def save_but_the_last(model: Model, folder: Path) -> None:
        if folder.name == "model" and model.provenance["steps"] == 4:
            raise OSError(errno.ENOSPC, "")
        save(model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "save", save_but_the_last)
        with pytest.raises(RunStopped, match=r"newest good checkpoint is .*000004"):
            train(config, tmp_path / "run", evaluator=lambda model: {"fid": 1.0})
    model = load(train(config, tmp_path / "run", resume=True))
    assert model.provenance["steps"] == 4
    assert model.provenance["metrics"] == {"step": model.provenance["steps"], "fid": 1.0}
    assert "After 4 steps" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_resume_leaves_a_model_that_is_up_to_date(tiny, tmp_path):
    """Somebody may be reading it, or have written into its card."""
    run = train(tiny(steps=2), tmp_path / "run")
    (run / "model" / "README.md").write_text("my own words")
    resumed = Trainer(tiny(steps=4), run, resume=True)
    resumed.setup()
    assert (run / "model" / "README.md").read_text() == "my own words"


def test_resume_of_a_model_without_checkpoints_is_refused(tiny, tmp_path):
    run = train(tiny(steps=2), tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"a model of step 2 but no checkpoint.*--init.*--overwrite"):
        train(tiny(steps=4), run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize("folder", ["model", "best"])
def test_foreign_files_in_a_model_folder_do_not_end_the_run(tiny, tmp_path, capsys, folder):
    values = iter([2.0, 1.0])

    def evaluator(model):
        path = tmp_path / "run" / folder
        if path.is_dir():
            (path / "mine.txt").write_text("precious")
        return {"fid": next(values)}

    run = train(tiny(steps=4, checkpoint_every=2, evaluate_every=2), tmp_path / "run", evaluator=evaluator)
    assert "mine.txt" in capsys.readouterr().out
    assert (run / folder / "mine.txt").read_text() == "precious"
    assert (run / "checkpoints" / "000004").is_dir()


@pytest.mark.parametrize("streamed", [False, True])
def test_broken_files_are_named_once(tiny, tmp_path, monkeypatch, capsys, broken_tar, streamed):
    monkeypatch.setattr("ddpm.data.datasets.MOST_MEMORY_BYTES", 100)  # decoded as it is drawn, each epoch again
    options = {"data.source": str(broken_tar(12, broken=[3, 7])), "data.streaming": streamed, "data.labels": False}
    train(tiny(steps=8, checkpoint_every=4, batch_size=12, **options), tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("skipped 2 files") == 1
    assert said.count("3.png") == said.count("7.png") == 1


def test_train_closes_a_streamed_dataset(tiny, tmp_path, monkeypatch, broken_tar):
    closed = []
    monkeypatch.setattr(StreamDataset, "close", lambda dataset: closed.append(dataset.config.source))
    source = str(broken_tar(12, broken=[]))
    train(tiny(steps=2, **{"data.source": source, "data.streaming": True, "data.labels": False}), tmp_path / "run")
    assert closed == [source]


def test_train_refuses_a_directory_that_cannot_be_written(tiny):
    with pytest.raises(UserError, match="cannot write in /proc/run"):
        train(tiny(), "/proc/run")


@pytest.mark.parametrize("resume", [False, True])
def test_train_expands_the_home_folder(tiny, tmp_path, monkeypatch, resume):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = train(tiny(steps=1), tmp_path / "run") if resume else tmp_path / "run"
    assert train(tiny(steps=2), "~/run", resume=resume) == run
    assert load(run).provenance["steps"] == 2
    assert not (tmp_path / "~").exists()


def test_train_refuses_the_home_folder_of_no_user(tiny):
    with pytest.raises(UserError, match="~nobody-of-that-name"):
        train(tiny(steps=1), "~nobody-of-that-name/run")
