"""Checkpoints: whole or absent, verified, pruned; damage is noticed and the one before is taken."""

import shutil

import pytest
import torch

from ddpm.common.errors import RunStopped, UserError
from ddpm.training import train
from ddpm.training.batches import BatchSource
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.step import train_step
from ddpm.training.trainer import Trainer

PARTS = {"network": {"w": torch.arange(6.0).reshape(2, 3)}, "ema": {"w": torch.ones(3)}}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def remove(path):
    path.unlink()


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def test_checkpoints_read_back_what_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(3, PARTS, {"note": [1, 2.5]})
    found = checkpoints.newest()
    assert found.state == {"note": [1, 2.5]}
    assert torch.equal(found.parts["network"]["w"], PARTS["network"]["w"])
    assert {path.suffix for path in found.path.iterdir()} == {".safetensors", ".json"}


def test_checkpoints_give_all_files_the_same_permissions(tmp_path):
    path = Checkpoints(tmp_path, keep=1).save(1, PARTS, {})
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1


def test_checkpoints_keep_the_newest_and_the_spared_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 30, 400, 1_000_000):
        checkpoints.save(step, PARTS, {}, spare=2)
    assert checkpoints.steps() == [2, 400, 1_000_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000400", "1000000"]


def test_checkpoints_keep_one_saved_before_a_damaged_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (2, 4):
        checkpoints.save(step, PARTS, {}, spare=2)
    truncate(tmp_path / "000004" / "ema.safetensors")
    checkpoints.save(3, PARTS, {})
    assert checkpoints.steps() == [3]


def test_checkpoints_that_cannot_be_removed_do_not_end_the_run(tmp_path, monkeypatch):
    """On a network disk a file that is still open elsewhere stays; the next save tries again."""
    checkpoints = Checkpoints(tmp_path, keep=1)

    def busy(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for step in (1, 2):
            checkpoints.save(step, PARTS, {})
    assert checkpoints.steps() == [2]
    checkpoints.save(3, PARTS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["000003"]


@pytest.mark.parametrize("part", ["network", "ema", "optimizer"])
def test_save_says_why_it_writes_nothing(tiny, tmp_path, part):
    """Also where no step came before, as at the start of a fine-tuned run."""
    trainer = Trainer(tiny(), tmp_path / "run")
    train_step(trainer.learner, trainer.batches.at(0), 1e-3)
    next(iter(trainer._tensors()[part].values())).view(-1)[0] = torch.nan
    with pytest.raises(RunStopped, match=f"{part}: .* is not finite, so neither checkpoint nor model was written"):
        trainer.save()
    assert list(tmp_path.iterdir()) == []


def test_process_counts_the_images_of_all_and_draws_its_share(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm.training.trainer.my_share", lambda size: range(2, size - 3))
    trainer = Trainer(tiny(batch_size=8), tmp_path / "run")
    whole = BatchSource(trainer.dataset, trainer.batches.timestep_sampler, batch_size=8, seed=0, random_flip=True)
    batch = trainer.batches.at(0)
    assert torch.equal(batch.x_0, whole.at(0).x_0[2:5])
    trainer.step(batch)
    assert trainer.progress.images == 8


def test_checkpoints_survive_a_failed_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, PARTS, {})
    with pytest.raises(TypeError):
        checkpoints.save(2, PARTS, {"not JSON": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


@pytest.mark.parametrize("name", ["network.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove, fill_with_zeros])
def test_newest_passes_over_a_damaged_checkpoint(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, PARTS, {})
    checkpoints.save(2, PARTS, {})
    damage(tmp_path / "000002" / name)
    said = []
    assert checkpoints.newest(said.append).path.name == "000001"
    assert len(said) == 1
    assert "000002" in said[0]


def test_newest_without_a_usable_checkpoint_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.newest()
    checkpoints.save(1, PARTS, {})
    truncate(tmp_path / "000001" / "ema.safetensors")
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoints.newest(lambda line: None)


def saved_as_nonfinite(checkpoints: Checkpoints, step: int, monkeypatch) -> None:
    """Write a checkpoint as a version without the check would have done it."""
    with monkeypatch.context() as patch:
        patch.setattr("ddpm.training.checkpoint.first_non_finite_part", lambda parts: None)
        checkpoints.save(step, PARTS | {"ema": {"w": torch.tensor([1.0, torch.nan, 3.0])}}, {})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_save_refuses_nonfinite_values(tmp_path, value):
    with pytest.raises(ValueError, match="ema: w is not finite"):
        Checkpoints(tmp_path / "checkpoints", 2).save(1, PARTS | {"ema": {"w": torch.tensor([1.0, value])}}, {})
    assert list(tmp_path.iterdir()) == []


def test_newest_passes_over_nonfinite_values(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, PARTS, {})
    saved_as_nonfinite(checkpoints, 2, monkeypatch)
    said = []
    assert checkpoints.newest(said.append).path.name == "000001"
    assert said == ["checkpoint 000002 holds values that are not finite (ema: w); taking the one before"]


def test_resume_from_nonfinite_values_is_refused(tiny, tmp_path, monkeypatch):
    run = train(tiny(steps=1), tmp_path / "run")
    saved_as_nonfinite(Checkpoints(run / "checkpoints", 1), 2, monkeypatch)
    with pytest.raises(UserError, match=r"unusable; .*checkpoint 000002 holds values that are not finite \(ema: w\)"):
        train(tiny(steps=3), run, resume=True)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove])
def test_resume_rolls_back_past_a_damaged_checkpoint(tiny, files, tmp_path, capsys, damage):
    config = tiny(steps=4, checkpoint_every=2)
    undisturbed = train(config, tmp_path / "undisturbed")
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    damage(run / "checkpoints" / "000004" / "optimizer.safetensors")
    train(config, run, resume=True)
    assert "000004 is damaged" in capsys.readouterr().out
    assert files.tensors(run, 4) == files.tensors(undisturbed, 4)
    assert files.records(run, "step", "loss") == files.records(undisturbed, "step", "loss")


def test_resume_with_another_architecture_is_refused(tiny, tmp_path):
    run = train(tiny(steps=1), tmp_path / "run")
    with pytest.raises(UserError, match=r"000001 has another configuration: size mismatch for .*weight"):
        train(tiny(steps=2, **{"network.channels": 16}), run, resume=True)


def test_checkpoint_holds_and_restores_everything_that_goes_on(tiny, tmp_path, monkeypatch):
    """Counts, sums, the best evaluation, the micro-batch after memory ran out, and every tensor; all unlike a start."""
    run = tmp_path / "run"
    config = tiny(steps=6, checkpoint_every=3, evaluate_every=2, log_every=2, micro_batch=3, seed=4, max_bad_steps=9,
                  **{"diffusion.timestep_sampler": "loss_aware", "diffusion.timesteps": 5})  # fmt: skip
    at = BatchSource.at
    values = iter([2.0, 5.0, 7.0])

    def spoilt(self, step):
        batch = at(self, step)
        if step == 2:
            batch.x_0[0] = torch.nan
        return batch

    def ended(self, due):
        if "evaluate" in due:
            self.evaluate(self.model())
        if self.progress.step == 3:
            self.learner.micro_batch = 2
            self.save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchSource, "at", spoilt)
        patch.setattr(Trainer, "on_step", ended)
        with pytest.raises(KeyboardInterrupt):
            train(config, run, evaluator=lambda model: {"fid": next(values), "other": 1.0})

    state = Checkpoints(run / "checkpoints", 3).newest().state
    assert state["progress"].pop("seconds") > 0
    sums = [state["progress"].pop(name) for name in ("loss_sum", "norm_sum")]
    assert state["progress"] == {"step": 3, "images": 24, "counted": 0}  # the third step was skipped
    assert sums == [0, 0]
    assert state["health"] == {"skipped": 1, "in_a_row": 1}
    assert (state["micro_batch"], state["seed"], state["class_names"]) == (2, 4, ["0", "1"])
    assert state["best"] == state["metrics"] == {"step": 2, "fid": 2.0, "other": 1.0}
    assert state["origin"] is None
    assert state["data"]["position"] == {}

    resumed = Trainer(config, run, resume=True)
    assert (resumed.progress.step, resumed.progress.images, resumed.saved) == (3, 24, 3)
    assert (resumed.guard.skipped, resumed.guard.in_a_row) == (1, 1)
    assert resumed.learner.micro_batch == 2
    assert resumed.best == resumed.metrics == state["best"]
    assert int(resumed.batches.timestep_sampler.seen.sum()) == 16  # two batches of eight; the spoilt one is left out
    kept = Checkpoints(run / "checkpoints", 3).newest().parts
    assert set(kept) == {"network", "ema", "optimizer", "timestep_sampler"}
    again = resumed._tensors()
    for part, tensors in kept.items():
        assert set(again[part]) == set(tensors)
        assert all(torch.equal(again[part][name], tensor) for name, tensor in tensors.items()), part
    assert kept["ema"]["ema_updates"] == 3
    assert {int(t) for name, t in kept["optimizer"].items() if name.endswith(".step")} == {2}
