"""Logs, evaluation on the way, and the model that a run leaves."""

import math
import shutil
import sys
import time
from types import ModuleType

import pytest

from ddpm.common.errors import UserError
from ddpm.model import Model, load
from ddpm.training import train
from ddpm.training.tracking import cut_back


def test_cut_back_keeps_records_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2}\n\n{"loss": 1}\n{"step": 3}\n{"step": 2, "fid": 1}\n{"st')
    cut_back(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2}\n{"step": 2, "fid": 1}\n'
    cut_back(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_cut_back_removes_damaged_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo\xf3s": 1}\n\x00\x00\x00\n{"step": 3}\n')
    cut_back(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_tensorboard_matches_metrics_after_a_resume(tiny, files, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tiny(steps=2, lr_schedule="constant", loggers=["tensorboard"]), tmp_path / "run")
    time.sleep(1)  # event files are read in the order of their names, which begin with the second
    train(tiny(steps=4, lr_schedule="constant", loggers=["tensorboard"]), run, resume=True)
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert shown == pytest.approx({record["step"]: record["loss"] for record in files.records(run, "step", "loss")})


def test_best_checkpoint_is_kept(tiny, files, tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5, 0.5])
    seen: list[bytes] = []

    def evaluator(model: Model) -> dict[str, float]:
        assert model.num_classes == 2
        seen.append(model.weights_hash)
        return {"fid": next(values), "other": -10.0 * len(seen)}

    options = {"evaluate_every": 2, "checkpoint_every": 1, "keep_checkpoints": 1, "lr_schedule": "constant"}
    run = train(tiny(steps=8, **options), tmp_path / "run", evaluator=evaluator)
    assert [record["fid"] for record in files.records(run, "fid")] == [3, 1, 2, 2.5]
    assert load(run / "best").weights_hash == seen[1]
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [4, 8]
    train(tiny(steps=10, **options), run, resume=True, evaluator=evaluator)
    assert load(run / "best").weights_hash == seen[4]
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [10]


def test_final_model_has_its_classes_and_provenance(tiny, tmp_path):
    """It knows what it was made of, and holds the averaged weights."""
    run = train(tiny(steps=3), tmp_path / "run")
    model = load(run)
    assert model.class_names == ["0", "1"]
    assert model.null_label == 2
    provenance = model.provenance
    assert (provenance["steps"], provenance["images"]) == (3, 24)
    assert provenance["config"]["training"]["learning_rate"] == 1e-3
    assert provenance["data"]["images"] == 30
    assert model.sample(3, steps=2, labels=1).shape == (3, 1, 8, 8)
    plain = load(train(tiny(steps=1, class_drop=0.0), tmp_path / "plain"))
    assert plain.null_label is None
    assert plain.network.num_classes == 2


def test_model_card_shows_only_previews(tiny, tmp_path):
    """Whatever else lies beside them, such as a copy of one."""
    options = {"preview_every": 1, "preview_images": 1, "preview_steps": 2, "lr_schedule": "constant"}
    run = train(tiny(steps=1, **options), tmp_path / "run")
    shutil.copyfile(run / "samples" / "000001.png", run / "samples" / "000009 copy.png")
    train(tiny(steps=2, **options), run, resume=True)
    assert "After 2 steps" in (run / "model" / "README.md").read_text()


def test_model_card_shows_no_preview_of_a_later_step(tiny, tmp_path):
    """As they are there once a run has gone back behind a damaged checkpoint."""
    options = {
        "preview_every": 2,
        "preview_images": 1,
        "preview_steps": 2,
        "checkpoint_every": 1,
        "lr_schedule": "constant",
    }
    run = train(tiny(steps=4, **options), tmp_path / "run")
    for step in (3, 4):
        (run / "checkpoints" / f"{step:06d}" / "state.json").unlink()
    train(tiny(steps=3, **options), run, resume=True)
    assert (run / "samples" / "000004.png").exists()
    assert "After 3 steps" in (run / "model" / "README.md").read_text()


def test_ema_matches_its_formula_over_a_resume(tiny, files, tmp_path):
    """EMA_n = Σ (1-d) d^(n-i) θ_i + d^n θ_0, over the weights of every step, kept over a resume."""
    import numpy as np

    options = {
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "ema_decay": 0.7,
        "ema_warmup": False,
        "lr_schedule": "constant",
    }
    run = train(tiny(steps=2, **options), tmp_path / "run")
    train(tiny(steps=5, **options), run, resume=True)
    name = "mid_block.resnets.0.conv1.weight"
    weights = [np.frombuffer(files.tensors(run, step)[f"network/{name}"], np.float32) for step in range(1, 6)]
    averages = [np.frombuffer(files.tensors(run, step)[f"ema/{name}"], np.float32) for step in range(1, 6)]
    expected = averages[0].astype(float)
    for theta, average in zip(weights[1:], averages[1:], strict=True):
        expected = 0.7 * expected + 0.3 * theta
        assert np.allclose(average, expected, rtol=1e-5, atol=1e-7)
    assert math.isfinite(expected.sum())


class FakeWandb(ModuleType):
    """wandb as far as a run uses it. `broken`: "login" or "init", which then raises wandb's error."""

    class Error(Exception):
        pass

    def __init__(self, broken: str | None = None):
        super().__init__("wandb")
        self.broken, self.begun, self.logged, self.finished = broken, [], [], 0

    def login(self) -> None:
        if self.broken == "login":
            raise self.Error("No API key configured. Use `wandb login` to log in.\nmore")

    def init(self, **options):
        if self.broken == "init":
            raise self.Error("Error communicating with wandb backend")
        self.begun.append(options)
        return self

    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_the_runs_numbers_under_one_id(tiny, files, tmp_path, monkeypatch):
    options = {"loggers": ["wandb"], "lr_schedule": "constant"}
    for steps in (2, 3):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        run = train(tiny(steps=steps, **options), tmp_path / "run", resume=steps == 3)
        (begun,) = fake.begun
        assert (begun["id"], begun["name"], begun["dir"]) == ((run / "wandb_id").read_text(), "run", str(run))
        assert begun["resume"] == "allow"
        assert begun["config"]["training"]["steps"] == steps
        assert fake.finished == 1
        records = [record for record in files.records(run, "step", "loss") if record["step"] > steps - len(fake.logged)]
        assert [(step, values["loss"]) for step, values in fake.logged] == [(r["step"], r["loss"]) for r in records]
    assert len(fake.logged) == 1


@pytest.mark.parametrize("broken", ["login", "init"])
def test_wandb_that_does_not_start_leaves_no_run_behind(tiny, tmp_path, monkeypatch, broken):
    """One line that says what to do; the directory can be used at once, and a run that was there is as it was."""
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken))
    said = r"Weights & Biases does not start: (No API key|Error comm).*; run `wandb login`, or set WANDB_MODE=offline"
    with pytest.raises(UserError, match=said):
        train(tiny(steps=1, loggers=["wandb"]), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run = train(tiny(steps=1, lr_schedule="constant"), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if broken == "login":
        with pytest.raises(UserError, match=said):
            train(tiny(steps=1, loggers=["wandb"]), run, overwrite=True)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match=said):
        train(tiny(steps=2, loggers=["wandb"], lr_schedule="constant"), run, resume=True)
    train(tiny(steps=2, lr_schedule="constant"), run, resume=True)
