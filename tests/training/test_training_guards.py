"""Numbers that are not finite, and memory that does not suffice."""

import json
import math
import re
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ddpm.common.errors import RunStopped, UserError
from ddpm.data import open_dataset
from ddpm.data.datasets import ImageDataset
from ddpm.model import load
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training import dry_run, train
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.compute import activation_bytes, dataset_bytes, kept_bytes
from ddpm.training.guards import NonFiniteGuard
from ddpm.training.optimizer import Optimizer
from ddpm.training.tracking import PendingStep, channel_means
from ddpm.training.trainer import Trainer


@pytest.fixture
def spoil(monkeypatch):
    """spoil(*steps): the batches of these steps (from 0) hold a NaN."""

    def spoil(*steps: int) -> None:
        at = BatchSource.at

        def spoilt(self, step: int) -> Batch:
            batch = at(self, step)
            if step in steps:
                batch.x_0[3, 0, 2, 2] = torch.nan
            return batch

        monkeypatch.setattr(BatchSource, "at", spoilt)

    return spoil


def test_bad_batch_is_skipped_and_set_aside(tiny, files, tmp_path, spoil):
    spoil(2)
    run = train(tiny(steps=5, checkpoint_every=1, keep_checkpoints=5), tmp_path / "run")
    before, after = files.tensors(run, 2), files.tensors(run, 3)
    moved = {name for name in before if before[name] != after[name]}
    assert {name.partition("/")[0] for name in moved} == {"ema"}  # averaging goes on over weights that stood still
    assert [record["skipped"] for record in files.records(run, "skipped")] == [0, 0, 1, 1, 1]
    aside = load_file(run / "set_aside" / "000002-0.safetensors")
    assert torch.isnan(aside["x_0"][3]).any()
    assert len(aside["t"]) == len(aside["noise"]) == 8
    assert json.loads((run / "set_aside" / "000002-0.json").read_text())["seed"] == 0
    for tensor in load_file(run / "checkpoints" / "000005" / "network.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_too_many_bad_steps_in_a_row_stop_the_run(tiny, files, tmp_path, spoil):
    spoil(1, 2, 4, 5, 6)
    with pytest.raises(RunStopped, match=r"3 steps in a row .* the batch itself .*x_0.* learning rate was 0.0005"):
        train(tiny(steps=9, checkpoint_every=2, max_bad_steps=2), tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run/set_aside").glob("*.json"))] == [
        f"00000{step}-0.json" for step in (1, 2, 4, 5, 6)
    ]
    assert (tmp_path / "run/checkpoints/000006").is_dir()


def turn_bad_after(monkeypatch, step: int, part: str, value: float) -> None:
    """Let a weight, or its average, be `value` once `step` steps are done, as after a faulty update."""
    on_step = Trainer.on_step

    def broken(self, due):
        if self.progress.step == step:
            tensors = self._tensors()[part]
            with torch.no_grad():
                tensors["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
        on_step(self, due)

    monkeypatch.setattr(Trainer, "on_step", broken)


@pytest.mark.parametrize(("part", "value"), [("network", math.nan), ("ema", math.nan), ("ema", math.inf)])
def test_nonfinite_model_is_never_written(tiny, tmp_path, monkeypatch, part, value):
    """Neither at a checkpoint nor at the end, and it is neither drawn from nor evaluated; what was good stays."""
    run, evaluated = tmp_path / "run", []
    turn_bad_after(monkeypatch, 4, part, value)

    def evaluator(model):
        evaluated.append(model.provenance["steps"])
        return {"fid": 1.0}

    config = tiny(steps=4, checkpoint_every=2, evaluate_every=2, preview_every=2, preview_images=1, preview_steps=2)
    with pytest.raises(RunStopped, match=rf"after 4 steps {part}: mid_block.resnets.0.conv1.weight is not finite"):
        train(config, run, evaluator=evaluator)
    assert evaluated == [2]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000002"]
    assert [path.name for path in (run / "samples").iterdir()] == ["000002.png"]
    assert load(run).provenance["steps"] == load(run / "best").provenance["steps"] == 2
    for tensor in load(run).network.state_dict().values():
        assert torch.isfinite(tensor).all()


def test_short_run_with_nonfinite_weights_fails(tiny, tmp_path):
    """Fewer bad steps than `max_bad_steps` are no reason to leave a model that is not finite."""
    with pytest.raises(RunStopped, match=r"is not finite, so neither checkpoint nor model was written"):
        train(tiny(steps=3, learning_rate=1e38, warmup=0, max_bad_steps=5, lr_schedule="constant"), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_nan_evaluation_is_not_the_best(tiny, tmp_path):
    values = iter([math.nan, 2.0, math.nan])
    run = train(tiny(steps=3, evaluate_every=1), tmp_path / "run", evaluator=lambda model: {"fid": next(values)})
    assert load(run / "best").provenance["metrics"] == {"step": 2, "fid": 2.0}


def break_layer(monkeypatch, name: str, backward: bool) -> None:
    """From the third step on, a layer answers, or passes back in its gradient, infinity."""
    step = Trainer.step

    def broken(self, batch, **options):
        if self.progress.step == 2:
            layer = self.network.get_submodule(name)
            if backward:
                layer.register_full_backward_hook(lambda module, given, received: (given[0] * torch.inf,))
            else:
                layer.register_forward_hook(lambda module, inputs, output: output * torch.inf)
        return step(self, batch, **options)

    monkeypatch.setattr(Trainer, "step", broken)


def test_diagnosis_names_the_layer_and_the_timesteps(tiny, tmp_path, monkeypatch):
    break_layer(monkeypatch, "mid_block.resnets.1.conv1", backward=False)
    with pytest.raises(RunStopped) as stopped:
        train(tiny(max_bad_steps=0, checkpoint_every=1), tmp_path / "run")
    assert "the output of layer mid_block.resnets.1.conv1 is not finite" in str(stopped.value)
    assert re.search(r"t = \d+", str(stopped.value))
    assert "checkpoints" in str(stopped.value)
    assert (tmp_path / "run/checkpoints/000002").is_dir()


def test_diagnosis_names_a_gradient(tiny, tmp_path, monkeypatch):
    break_layer(monkeypatch, "up_blocks.0.resnets.1.conv1", backward=True)
    with pytest.raises(RunStopped, match=r"layer up_blocks\.0\.resnets\.1\.conv1 passes back is not finite"):
        train(tiny(max_bad_steps=0), tmp_path / "run")


def test_fp16_finds_its_loss_scale(tiny, files, tmp_path):
    """The first scale, 65,536, overflows in half precision; that is not an accident and not counted as one."""
    run = train(tiny(steps=12, precision="fp16", **{"diffusion.loss": "l1"}), tmp_path / "run")
    scales = [record["loss_scale"] for record in files.records(run, "loss_scale")]
    assert scales == sorted(scales, reverse=True)
    assert not (run / "set_aside").exists()
    assert files.records(run, "loss")[-1]["loss"] < 2


@pytest.mark.parametrize(("saved", "loaded"), [(False, True), (True, False)])
def test_loss_scale_is_not_restored_from_another_precision(saved, loaded):
    before, after = (Optimizer(torch.nn.Linear(2, 2), None, scales) for scales in (saved, loaded))
    fresh = after.scale.clone()
    after.load_state_dict(before.state_dict())
    assert after.scale == fresh


@pytest.mark.parametrize("fits", [1, 3])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(tiny, files, tmp_path, monkeypatch, fits):
    """Memory for `fits` images at once: the losses stay those of the whole batch."""
    whole = train(tiny(steps=3), tmp_path / "whole")
    forward = UNet.forward

    def limited(self, x_t, *rest):
        if len(x_t) > fits and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x_t, *rest)

    monkeypatch.setattr(UNet, "forward", limited)
    run = train(tiny(steps=3), tmp_path / "run")
    for a, b in zip(files.records(whole, "loss"), files.records(run, "loss"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_single_image_that_does_not_fit_is_refused(tiny, tmp_path, monkeypatch):
    def hopeless(self, *inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNet, "forward", hopeless)
    with pytest.raises(UserError, match="one image"):
        train(tiny(steps=3), tmp_path / "run")


def test_run_that_cannot_fit_is_refused_before_it_starts(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm.training.compute.total_memory", lambda device: 1 << 20)
    with pytest.raises(UserError, match=r"would need .* GiB of memory"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_micro_batch_follows_the_memory(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ddpm.training.compute.total_memory", lambda device: 4 << 20)
    train(tiny(steps=1, batch_size=24), tmp_path / "run")
    chosen = int(re.search(r"micro-batch (\d+)", capsys.readouterr().out)[1])
    assert chosen in {-(-24 // parts) for parts in range(2, 25)}  # as equal as that many parts can be


def test_dataset_bytes_ignores_data_that_stay_on_the_host(tiny):
    dataset = open_dataset(tiny().data)
    assert dataset_bytes(dataset, torch.device("cpu")) == 30 * 8 * 8
    assert dataset_bytes(dataset, torch.device("mps")) == 30 * 8 * 8  # whose memory is the machine's
    assert dataset_bytes(dataset, torch.device("cuda")) == 0


def test_activation_bytes_counts_what_autograd_keeps(tiny):
    """A convolution keeps its input, SiLU its input: counted by hand on a network of the two."""

    class Two(torch.nn.Module):
        in_channels, image_size, num_classes = 3, (8, 8), None

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x_t, t, labels, dropout_keys):
            return torch.nn.functional.silu(self.conv(x_t))

    assert activation_bytes(Two(), torch.float32) == 4 * 64 * (3 + 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activation_bytes_is_the_cost_of_one_more_image(dtype):
    """Weights cast to the dtype are kept too, but once; of a checkpointed block its inputs, and all of the largest."""

    def network(checkpointing: bool) -> UNet:
        config = NetworkConfig(channels=16, blocks=1, attention=[4], groups=4, gradient_checkpointing=checkpointing)
        return UNet(config, (8, 8)).to(memory_format=torch.channels_last)

    def one_more(network: UNet) -> int:
        few, many = (kept_bytes(network, torch.zeros(n, 3, 8, 8, dtype=dtype), torch.zeros(n)) for n in (2, 3))
        return many - few

    plain, checkpointed = network(False), network(True)
    assert activation_bytes(plain, dtype) == pytest.approx(one_more(plain), rel=0.1)
    assert one_more(checkpointed) < activation_bytes(checkpointed, dtype) < activation_bytes(plain, dtype)


def test_log_holds_norms_and_ema_drift(tiny, files, tmp_path):
    run = train(tiny(steps=4), tmp_path / "run")
    first, *_, last = files.records(run, "gradient_norm", "weight_norm", "ema_drift", "images", "learning_rate")
    assert last["images"] == 32
    assert 0 < first["ema_drift"] < 1
    weights = load_file(run / "checkpoints/000004/network.safetensors")
    average = load_file(run / "checkpoints/000004/ema.safetensors")
    norm = torch.cat([w.double().flatten() for w in weights.values()]).norm()
    drift = torch.cat([(average[name] - w).double().flatten() for name, w in weights.items()]).norm() / norm
    assert last["weight_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert last["ema_drift"] == pytest.approx(float(drift), rel=1e-4)


def test_preview_logs_the_channel_drift(tiny, files, tmp_path):
    run = train(tiny(steps=2, preview_every=2, preview_images=3, preview_steps=2), tmp_path / "run")
    (record,) = files.records(run, "channel_0_drift")
    assert abs(record["channel_0_drift"]) < 2


def test_channel_means_reads_a_few_images_at_a_time():
    images = torch.randint(0, 256, (3000, 3, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = []

    class Large(ImageDataset):
        image_shape = (3, 2, 4)

        def __len__(self):
            return len(images)

        def batch(self, indices):
            asked.append(torch.tensor(indices))
            return images[asked[-1]], None

    means = channel_means(Large())
    assert max(map(len, asked)) <= 16
    chosen = torch.cat(asked)
    assert 500 < len(chosen) <= 1024
    assert chosen[-1] > 2990
    torch.testing.assert_close(means, images[chosen].double().mean((0, 2, 3)) / 127.5 - 1)


def test_channel_means_is_not_computed_without_previews(tiny, tmp_path, monkeypatch):
    monkeypatch.delattr("ddpm.training.tracking.channel_means")
    monkeypatch.setattr(dry_run, "LEAST_SECONDS", 0.0)
    train(tiny(steps=1, preview_every=0), tmp_path / "run")
    assert "speed" in dry_run.dry_run(tiny(preview_every=1))


@pytest.mark.parametrize(
    ("numbers", "scale", "skipped"),
    [
        ((0.5, math.inf), None, True),
        ((0.5, math.inf), 4.0, False),  # in fp16 the loss scale may be too large: it shrinks, and nothing is wrong
        ((0.5, math.nan), 0.5, True),  # it cannot shrink any more
        ((math.nan, math.inf), 4.0, True),  # the loss itself is not scaled
        ((0.5, 2.0), 4.0, False),
    ],
)
def test_only_what_a_smaller_loss_scale_may_mend_is_not_skipped(tiny, tmp_path, monkeypatch, numbers, scale, skipped):
    guard, met = NonFiniteGuard(tmp_path, tiny().training), []
    monkeypatch.setattr(guard, "skip", lambda step, *_: met.append(step))
    optimizer = SimpleNamespace(scales_loss=scale is not None, scale=torch.tensor(1.0 if scale is None else scale))
    progress = SimpleNamespace(count=lambda *_: None)
    pending = deque([PendingStep(7, None, torch.tensor([*numbers, 0.0]))])
    assert not guard.settle(pending, 0, progress, SimpleNamespace(optimizer=optimizer))
    assert met == [7] * skipped


@pytest.mark.parametrize(("asked", "in_flight", "stop"), [([0, 1, 0], 0, True), ([0, 0, 1], 1, False), ([0], 0, False)])
def test_a_request_to_stop_in_any_settled_step_counts(tiny, tmp_path, asked, in_flight, stop):
    pending = deque(PendingStep(step, None, torch.tensor([0.5, 1.0, one])) for step, one in enumerate(asked))
    counted = []
    progress = SimpleNamespace(count=lambda *numbers: counted.append(numbers))
    assert NonFiniteGuard(tmp_path, tiny().training).settle(pending, in_flight, progress, None) is stop
    assert counted == [(0.5, 1.0)] * (len(asked) - in_flight)
    assert len(pending) == in_flight
