"""What is behind the Runs tab, and the switcher of models."""

import os
import socket
import time
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch

from ddpm.app import models, runs, training
from ddpm.common.errors import UserError
from ddpm.common.pixels import save_grid
from ddpm.model import BUNDLED, Model


def test_runs_are_read_while_they_are_written(runs_folder):
    assert runs.find_runs(runs_folder) == ["first"]
    assert runs.find_runs(runs_folder / "first") == ["first"]
    assert len(runs.read_metrics(runs_folder / "first")) == 300
    assert runs.quantities(runs_folder, ["first"]) == ["loss", "images_per_second"]
    (curve,) = runs.curves(runs_folder, ["first"])
    assert curve.x[-1] == 300
    pictures = runs.previews(runs_folder, "first")
    assert [caption for _, caption in pictures] == ["first, step 100", "first, step 200"]


def test_the_state_of_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        '{"step": 50, "seconds": 10, "images_per_second": 95.4}',
        '{"step": 100, "seconds": 20, "images_per_second": 95.4}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert runs.state_of(run).words() == ["stopped", "100", "95", ""]
    (run / "config.yaml").write_text("training: {steps: 400}\n")
    (run / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    assert runs.state_of(run).words() == ["training", "100 of 400", "95", "60 s"]
    (run / ".lock").write_text(f"process {os.getpid()} on another machine")
    assert runs.state_of(run).words()[0] == "stopped"
    (run / "config.yaml").write_text("training: {steps: 100}\n")
    assert runs.state_of(run).words() == ["finished", "100 of 100", "95", ""]
    assert "<b>" not in runs.table(tmp_path, []) + runs.nothing_in(tmp_path, True)


def test_previews_have_no_white_gaps_and_no_white_rest(tmp_path):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {image_size: 8}\n")
    (run / "metrics.jsonl").touch()
    save_grid(-torch.ones(5, 1, 8, 8), run / "samples" / "000010.png", columns=3)
    [(picture, _)] = runs.previews(tmp_path, "run")
    pixels = np.asarray(picture)
    assert (pixels[..., 3] > 0).sum() == 5 * 64
    assert pixels[pixels[..., 3] > 0][:, :3].max() == 0


def test_the_switcher_offers_what_there_is_and_nothing_else(served_model, tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    for name in ("empty", "trained"):
        (tmp_path / "runs" / name).mkdir(exist_ok=True)
        (tmp_path / "runs" / name / "metrics.jsonl").touch()
    trained = tmp_path / "runs" / "trained"
    served_model.save(trained / "model")
    for step in ("000500", "001000"):
        (trained / "checkpoints" / step).mkdir(parents=True)
        (trained / "checkpoints" / step / "ema.safetensors").touch()
    offered = models.Models(["mine", "digits"], tmp_path / "runs", page=lambda name: pytest.fail(name), look={})
    assert offered.groups() == {
        "Given": {"mine": "mine", "digits": "digits"},
        "Bundled": {name: name for name in BUNDLED if name != "digits"},
        "Runs": {str(trained): "trained"},
        "Checkpoints": {
            str(trained / "checkpoints" / "001000"): "trained, step 1,000",
            str(trained / "checkpoints" / "000500"): "trained, step 500",
        },
    }
    same = Model(served_model.network, served_model.diffusion, image_shape=(1, 16, 16), provenance={"steps": 1000})
    same.save(trained / "model")
    assert list(offered.groups()["Checkpoints"].values()) == ["trained, step 500"]  # the run's own is not told twice
    for name in ("/etc", str(tmp_path / "runs" / "empty"), ""):
        assert "no model" in offered.open(name)["error"]


def until(holds):
    """Wait for another process."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it never came about")


def test_a_training_is_a_process_of_its_own_that_stops_when_told(tmp_path, stub_trainer):
    trainings = training.Trainings(tmp_path / "runs")
    assert trainings.start("new", "digits", "pictures", 5).startswith("Started new.")
    run = tmp_path / "runs" / "new"
    until(lambda: runs.find_runs(tmp_path / "runs") == ["new"] and training.process_of(run))
    assert "-m ddpm train digits --out" in (tmp_path / "runs" / "new.log").read_text()
    assert os.getsid(training.process_of(run).pid) != os.getsid(0)
    assert runs.state_of(run).words()[:2] == ["training", "5 of 100"]
    assert 'data-stop="new"' in runs.table(tmp_path / "runs", ["new"], trains=True)
    assert training.Trainings(tmp_path / "runs").stop("new").startswith("new saves a checkpoint")  # another page, too
    until(lambda: training.process_of(run) is None and trainings.started["new"].poll() is not None)
    assert trainings.stop("new") == "new is not training."
    assert trainings.news() == {}
    with pytest.raises(UserError, match="exists"):
        trainings.start("new", "digits", "", 5)


@pytest.fixture
def preparing(tmp_path, monkeypatch):
    """A small program in place of `ddpm train` that has not made its run yet."""
    script = tmp_path / "prepare"
    script.write_text('#!/bin/sh\necho "$@"\nexec sleep 30\n')
    script.chmod(0o755)
    monkeypatch.setattr("ddpm.app.training.sys.executable", str(script))


def parts(folder):
    """What the fields of a training are connected to: the functions and the components, by their names."""
    with gr.Blocks() as page:
        runs.train(folder)
    functions = {function.name: function.fn for function in page.fns.values()}
    return functions, {getattr(block, "label", None): block for block in page.blocks.values()}


def test_a_name_that_is_being_prepared_is_refused(tmp_path, preparing):
    folder = tmp_path / "runs"
    trainings = training.trainings_in(folder)
    trainings.start("new", "digits", "", 5)
    first = trainings.started["new"]
    log = folder / "new.log"
    until(lambda: log.read_text())
    with pytest.raises(UserError, match="run new is being prepared"):
        trainings.start("new", "digits", "", 5)
    with pytest.raises(gr.Error, match="run new is being prepared"):  # by the page of another model, too
        parts(folder)[0]["begin"]("new", "digits", "", 5)
    assert trainings.started["new"] is first
    assert log.read_text()
    first.kill()
    first.wait()
    assert trainings.start("new", "digits", "", 5).startswith("Started new.")
    trainings.started["new"].kill()


def test_the_line_about_a_training_goes_when_its_run_is_there(tmp_path, preparing):
    folder = tmp_path / "runs"
    functions, _ = parts(folder)
    functions["begin"]("new", "digits", "", 5)
    said, going = functions["news"]("")
    assert said == ""  # not "Started" any more
    assert "new: prepares" in going
    assert functions["news"](going) == (gr.skip(), gr.skip())  # a refusal can be read, a button pressed
    (folder / "new").mkdir()
    (folder / "new" / "metrics.jsonl").touch()
    assert functions["news"](going) == ("", "")
    assert functions["news"]("") == (gr.skip(), gr.skip())
    training.trainings_in(folder).started["new"].kill()


@pytest.mark.parametrize("minutes", [0, -3, 0.5, 1e12, float("nan"), None])
def test_impossible_minutes_are_refused(tmp_path, minutes):
    functions, fields = parts(tmp_path / "runs")
    with pytest.raises(gr.Error, match="minutes must be from 1 to 10,080"):
        functions["begin"]("new", "digits", "", minutes)
    assert (fields["Minutes"].minimum, fields["Minutes"].maximum) == (1, 7 * 24 * 60)  # what the page says beside it
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("made", ["", 'touch "$2/metrics.jsonl"; '])
def test_a_training_that_fails_says_its_last_line(tmp_path, preparing, made):
    script = tmp_path / "prepare"
    out = 'while [ "$1" != --out ]; do shift; done; mkdir "$2"'
    script.write_text(f"#!/bin/sh\n{out}; {made}echo a line; echo 'ddpm: error: too short'; exit 2\n")
    functions, _ = parts(tmp_path / "runs")
    functions["begin"]("new", "digits", "", 5)
    until(lambda: training.trainings_in(tmp_path / "runs").started["new"].poll() is not None)
    _, going = functions["news"]("")
    assert ">new: too short<" in going
    training.trainings_in(tmp_path / "runs").dismiss("new")
    assert functions["news"](going) == ("", "")


def test_a_training_can_be_stopped_while_it_prepares(tmp_path, preparing):
    functions, _ = parts(tmp_path / "runs")
    functions["begin"]("new", "digits", "", 5)
    until(lambda: (tmp_path / "runs" / "new.log").read_text())
    _, going = functions["news"]("")
    assert 'data-stop="new"' in going
    own = training.trainings_in(tmp_path / "runs").started["new"]
    assert training.trainings_in(tmp_path / "runs").stop("new") == "new stops."
    until(lambda: own.poll() is not None)
    assert ">new: stopped<" in functions["news"](going)[1]


def test_a_training_that_cannot_begin_says_why(tmp_path):
    trainings = training.Trainings(tmp_path)
    trainings.start("new", "digits", str(tmp_path / "nowhere"), 5)
    until(lambda: trainings.started["new"].poll() is not None)
    assert "nowhere" in trainings.news()["new"]
    assert "ddpm: error" not in trainings.news()["new"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("", "digits", "", 5), "name"),
        (("../out", "digits", "", 5), "name"),
        (("new", "nothing", "", 5), "no preset"),
        (("new", "digits", "", 0), "minutes"),
        (("new", "digits", "", None), "minutes"),
    ],
)
def test_a_training_that_cannot_be_is_refused(tmp_path, fields, said):
    with pytest.raises(UserError, match=said):
        training.Trainings(tmp_path).start(*fields)
    assert not list(tmp_path.iterdir())


def test_the_run_one_stands_in_has_a_name(runs_folder, monkeypatch):
    monkeypatch.chdir(runs_folder / "first")
    assert runs.find_runs(Path()) == ["first"]
    assert len(runs.read_metrics(runs.run_path(Path(), "first"))) == 300


def test_a_run_that_grows_is_noticed(tmp_path, runs_folder):
    assert runs.fingerprint(tmp_path) == []
    (tmp_path / "new").mkdir()
    config = tmp_path / "new" / "config.yaml"
    config.touch()
    os.utime(config, (1, 1))  # long ago: a file system's clock may stand still between two writes
    before = runs.fingerprint(tmp_path)
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert runs.fingerprint(tmp_path) != before


@pytest.mark.parametrize("name", ["../first", "other", "", "/etc"])
def test_no_other_directory_is_read(runs_folder, name):
    with pytest.raises(UserError, match="no run"):
        runs.run_path(runs_folder, name)


def test_a_run_with_a_dollar_in_its_name_is_drawn(tmp_path):
    run = tmp_path / "a$b$_"
    run.mkdir()
    (run / "config.yaml").touch()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    (curve,) = runs.curves(tmp_path, ["a$b$_"])
    assert curve.name == "a$b$_"
    assert "a$b$_" in runs.table(tmp_path, ["a$b$_"])
