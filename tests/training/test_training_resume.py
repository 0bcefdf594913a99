"""A run that was interrupted ends bit for bit as one that was not."""

import shutil
import signal

import pytest
import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data.datasets import epoch_order
from ddpm.data.stream import StreamDataset
from ddpm.model import load
from ddpm.training import train
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.trainer import Trainer

STEPS = 4
VARIANTS = {
    "plain": {},
    "loss_aware": {"diffusion.timestep_sampler": "loss_aware", "diffusion.timesteps": 2},
    "learned_variance": {"diffusion.variance": "learned_range", "diffusion.loss": "hybrid"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "micro_batch": {"micro_batch": 3},
    "muon": {"optimizer": "muon", "precision": "bf16"},
    "unconditional": {"data.labels": False, "diffusion.timestep_sampler": "stratified"},
}


@pytest.fixture
def cut_off(monkeypatch):
    """cut_off(config, run, step): train, resuming what is there, and be told to stop by SIGTERM after `step`."""
    on_step = Trainer.on_step

    def cut(config, run, step):
        def told_to_stop(self, due):
            on_step(self, due)
            if self.progress.step == step:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "on_step", told_to_stop)
            with pytest.raises(SystemExit) as left:
                train(config, run, resume=run.exists())
        assert left.value.code == 128 + signal.SIGTERM
        assert max(int(path.name) for path in (run / "checkpoints").iterdir()) == step  # not one step later

    return cut


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bitwise_from_every_step(tiny, files, tmp_path, cut_off, variant):
    config = tiny(**VARIANTS[variant], steps=STEPS, checkpoint_every=1)
    undisturbed = train(config, tmp_path / "undisturbed")
    keys = ("step", "images", "loss", "gradient_norm", "learning_rate", "weight_norm", "ema_drift")
    assert [record["step"] for record in files.records(undisturbed, *keys)] == list(range(1, STEPS + 1))
    run = tmp_path / "run"
    for step in range(1, STEPS):
        cut_off(config, run, step)
    train(config, run, resume=True)
    assert files.tensors(run, STEPS) == files.tensors(undisturbed, STEPS)
    assert files.records(run, *keys) == files.records(undisturbed, *keys)


def test_streamed_run_goes_on_at_its_place_in_the_shards(tiny, files, tmp_path, monkeypatch, broken_tar):
    """Bit for bit, and without reading again what has gone by."""
    source = {"data.source": str(broken_tar(40, broken=[])), "data.labels": False}
    config = tiny(steps=4, checkpoint_every=2, **source, **{"data.streaming": True, "data.shuffle_buffer": 5})
    whole, run = train(config, tmp_path / "whole"), tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "000004")
    place = Checkpoints(run / "checkpoints", 3).newest().state["data"]["position"]
    given, load_state_dict = [], StreamDataset.load_state_dict

    def watched(dataset, state):
        given.append(state)
        load_state_dict(dataset, state)

    monkeypatch.setattr(StreamDataset, "load_state_dict", watched)
    train(config, run, resume=True)
    assert given == [place]
    assert place
    assert files.tensors(run, 4) == files.tensors(whole, 4)


def test_resume_cuts_the_log_back_to_the_checkpoint(tiny, files, tmp_path):
    """A killed run has logged more than it saved."""
    config = tiny(steps=5, checkpoint_every=2, log_every=1)
    undisturbed = train(config, tmp_path / "undisturbed")
    run = train(config, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "000005")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    train(config, run, resume=True)
    assert files.records(run, "step", "loss") == files.records(undisturbed, "step", "loss")
    assert files.tensors(run, 5) == files.tensors(undisturbed, 5)


def test_resume_keeps_the_sums_of_an_unfinished_log_line(tiny, files, tmp_path, cut_off):
    config = tiny(steps=6, checkpoint_every=2, log_every=3)
    undisturbed = train(config, tmp_path / "undisturbed")
    cut_off(config, tmp_path / "run", 4)
    run = train(config, tmp_path / "run", resume=True)
    assert files.records(run, "step", "loss", "gradient_norm") == files.records(
        undisturbed, "step", "loss", "gradient_norm"
    )


def test_finished_run_resumes_with_more_steps(tiny, files, tmp_path):
    run = train(tiny(steps=3, lr_schedule="constant"), tmp_path / "run")
    train(tiny(steps=5, lr_schedule="constant"), run, resume=True)
    at_once = train(tiny(steps=5, lr_schedule="constant"), tmp_path / "at_once")
    assert files.tensors(run, 5) == files.tensors(at_once, 5)


@pytest.mark.parametrize("batch_size", [4, 12])
def test_resume_with_another_batch_size_continues_in_the_data(tiny, files, tmp_path, batch_size):
    """No image of the epoch is left out or drawn twice, and images are counted as they were drawn."""
    run = train(tiny(steps=2, lr_schedule="constant"), tmp_path / "run")
    config = tiny(steps=4, lr_schedule="constant", batch_size=batch_size)
    going_on = Trainer(config, run, resume=True)
    expected, _ = going_on.dataset.batch(epoch_order(30, 0, range(16, 16 + batch_size)))
    x_0, _ = going_on.batches.images(2, range(batch_size))
    assert torch.equal(x_0.sort(-1).values, (expected / 127.5 - 1).sort(-1).values)  # some are mirrored
    train(config, run, resume=True)
    drawn = [8, 16, 16 + batch_size, 16 + 2 * batch_size]
    assert [record["images"] for record in files.records(run, "images")] == drawn
    assert load(run).provenance["images"] == drawn[-1]
    train(tiny(steps=5, lr_schedule="constant", batch_size=8), run, resume=True)
    assert load(run).provenance["images"] == drawn[-1] + 8


def test_resume_accepts_a_checkpoint_without_newer_fields(tiny, files, tmp_path):
    """As the first ones were written."""
    config = tiny(steps=4, checkpoint_every=2)
    undisturbed = train(config, tmp_path / "undisturbed")
    run = train(config, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "000004")
    old = Checkpoints(run / "checkpoints", 3).newest()
    del old.state["progress"]["images"], old.state["class_names"]
    Checkpoints(run / "checkpoints", 3).save(2, old.parts, old.state)
    train(config, run, resume=True)
    assert files.tensors(run, 4) == files.tensors(undisturbed, 4)
    assert files.records(run, "step", "images", "loss") == files.records(undisturbed, "step", "images", "loss")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["zebra", "dog"], "class 0 of .* was cat and is now dog"),
        (["cat", "dog", "emu"], "class 2 of .* was none and is now emu"),
        (["cat"], "class 1 of .* was dog and is now none"),
    ],
)
def test_resume_with_renumbered_classes_is_refused(tiny, tmp_path, names, said):
    """A folder that was renamed changes the order of the classes."""

    def photos(folder, names):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / folder / name / "1.png")
        return {"data.source": str(tmp_path / folder)}

    run = train(tiny(steps=1, **photos("before", ["cat", "dog"])), tmp_path / "run")
    with pytest.raises(UserError, match=rf"{said}: give the classes the names they had, or .* --init {run} --out NEW"):
        train(tiny(steps=2, **photos("now", names)), run, resume=True)
    train(tiny(steps=2, **photos("moved", ["cat", "dog"])), run, resume=True)


def test_resume_with_fewer_steps_is_refused(tiny, tmp_path, capsys):
    run = train(tiny(steps=3), tmp_path / "run")
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"has done 3 steps; --training\.steps must be larger \(got 2\)"):
        train(tiny(steps=2), run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    capsys.readouterr()
    train(tiny(steps=3), run, resume=True)
    assert "all 3 steps are done already; for more give --training.steps" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


def test_run_inside_its_dataset_is_not_trained_on(tiny, tmp_path, capsys):
    """As `cd photos; ddpm train PRESET --data .` makes it: the previews must not be trained on."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), len(name)).save(tmp_path / name / "1.png")
    options = {"data.source": str(tmp_path), "preview_every": 1, "preview_images": 1, "lr_schedule": "constant"}
    run = train(tiny(steps=1, **options), tmp_path / "runs" / "tiny")
    begun = load(run)
    capsys.readouterr()
    train(tiny(steps=2, **options), run, resume=True)
    assert load(run).class_names == begun.class_names == ["cat", "dog"]
    assert load(run).provenance["data"] == begun.provenance["data"]
    assert "runs/tiny: it is a training run, whose pictures are not data" in capsys.readouterr().out


def test_same_seed_gives_the_same_bytes(tiny, tmp_path):
    """Weights and pictures of two runs of one configuration on one machine."""
    config = tiny(steps=3, preview_every=3, preview_images=4, preview_steps=3)
    one, two = train(config, tmp_path / "one"), train(config, tmp_path / "two")
    for name in ("samples/000003.png", "model/unet/diffusion_pytorch_model.safetensors", "config.yaml"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert train(tiny(steps=3, seed=1), tmp_path / "three")
    assert (one / "model/unet/diffusion_pytorch_model.safetensors").read_bytes() != (
        tmp_path / "three/model/unet/diffusion_pytorch_model.safetensors"
    ).read_bytes()
