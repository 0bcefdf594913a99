"""Every configuration field changes what it names: the object or the run that it controls.

One row per field; a field without a row fails `test_every_field_has_a_row`. A row gives values for the field, what else
must be set for the field to act, and a probe that measures its effect on the built object or on a run, against a
formula where there is one.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ddpm
from ddpm.data.images import to_tensor
from ddpm.data.sources import open_dataset
from ddpm.networks.unet import ResidualBlock, UNet
from ddpm.training.config import Config, load_config
from ddpm.training.trainer import train

T = 20
BASE = {
    "data.image_size": 8,
    "data.channels": 1,
    "data.labels": True,
    "diffusion.schedule": "linear",
    "diffusion.timesteps": T,
    "diffusion.beta_start": 0.001,
    "diffusion.beta_end": 0.2,
    "diffusion.prediction": "epsilon",
    "diffusion.variance": "fixed_large",
    "diffusion.weighting": "none",
    "diffusion.timestep_sampler": "uniform",
    "network.channels": 8,
    "network.channel_mult": [1, 2],
    "network.blocks": 1,
    "network.attention": [4],
    "network.groups": 4,
    "training.steps": 4,
    "training.batch_size": 8,
    "training.learning_rate": 0.01,
    "training.warmup": 0,
    "training.lr_schedule": "constant",
    "training.precision": "fp32",
    "training.ema_decay": 0.9,
    "training.checkpoint_every": 4,
    "training.preview_every": 0,
    "training.log_every": 1,
    "training.loggers": [],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Images of two classes, each with its own left-to-right slope; not square, and partly transparent."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(12):
        name = "ab"[index % 2]
        (folder / name).mkdir(exist_ok=True)
        pixels = random.integers(0, 200, (10, 14, 4), dtype=np.uint8) + np.arange(14, dtype=np.uint8)[:, None]
        pixels[..., 3] = 255
        pixels[:3, :, 3] = 0
        Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def configure(photos: Path, changes: dict) -> Config:
    return load_config("digits", {**BASE, "data.source": str(photos), **changes})


def probed(photos: Path, tmp_path: Path, fields: dict, probe, values) -> list:
    (field, extra), *_ = fields.items()
    return [probe(configure(photos, {**extra, field: value}), tmp_path / str(i)) for i, value in enumerate(values)]


# Probes of objects


def data_set(config: Config, _):
    data = open_dataset(config.data)
    images, labels = data.batch(torch.arange(len(data)))
    return images, labels, data.class_names


def pixels(config, out):
    return data_set(config, out)[0]


def classes(config, out):
    return data_set(config, out)[2]


def schedule(config, _):
    return config.diffusion.build().schedule.alphas_cumprod


def target(config, _):
    x_0, noise = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), -2.0)
    return config.diffusion.build().target(x_0, 7, noise)


def log_variance(config, _):
    diffusion = config.diffusion.build()
    return diffusion.log_variance, diffusion.learns_variance


def loss(config, _):
    """The loss of one fixed prediction at every timestep."""
    diffusion, t = config.diffusion.build(), torch.arange(T)
    x_0, noise = torch.linspace(-1, 1, T * 4).reshape(T, 1, 2, 2), torch.linspace(-2, 3, T * 4).reshape(T, 1, 2, 2)
    x_t = diffusion.q_sample(x_0, t, noise)
    output = torch.linspace(3, -1, T * 4).reshape(T, 1, 2, 2)
    return config.diffusion.build_loss()(output, x_0, x_t, t, noise)


def drawn_timesteps(config, _):
    """1,000 draws of a batch of T: how far their histogram is from even."""
    sampler = config.diffusion.build_timestep_sampler()
    counts = torch.zeros(T)
    for step in range(50):
        t, _ = sampler.draw(0, step, torch.arange(T), T)
        counts += torch.bincount(t, minlength=T)
    return type(sampler).__name__, counts


def network(config, _):
    torch.manual_seed(0)
    return UNet(config.network, config.data.size, 1, 1, 3)


def answer(config, out):
    """The network's parameters and its answer, with every weight random so that nothing is multiplied by zero."""
    net = network(config, out).eval()
    for index, parameter in enumerate(net.parameters()):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return net(x_t, torch.tensor([3.0, 15.0]), torch.tensor([0, 1])).detach()


def parameters(config, out):
    return sum(p.numel() for p in network(config, out).parameters())


def dropped(config, out):
    """The fraction of the answer that a second dropout key changes."""
    net = network(config, out).train()
    net.conv_out.weight.data.fill_(1.0)
    for block in (module for module in net.modules() if isinstance(module, ResidualBlock)):
        block.conv2.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x_t, t, labels = torch.ones(1, 1, 8, 8), torch.tensor([3.0]), torch.tensor([0])
    first, second = (net(x_t, t, labels, torch.tensor([key])).detach() for key in (1, 2))
    return not torch.equal(first, second)


def block_calls(config, out):
    """How often residual blocks run in one forward and backward pass."""
    net, calls = network(config, out).train(), []
    for block in (module for module in net.modules() if isinstance(module, ResidualBlock)):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    net(torch.ones(1, 1, 8, 8), torch.tensor([3.0]), torch.tensor([0]), torch.tensor([1])).sum().backward()
    return len(calls)


# Probes of runs


def run(config, out) -> Path:
    return train(config, out)


def metrics(config, out) -> list[dict]:
    return [json.loads(line) for line in (run(config, out) / "metrics.jsonl").read_text().splitlines()]


def logged(key):
    return lambda config, out: [record[key] for record in metrics(config, out) if key in record]


def weights(config, out):
    return load_file(run(config, out) / "model" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]


def raw_weights(config, out):
    newest = max((run(config, out) / "checkpoints").iterdir())
    return load_file(newest / "network.safetensors")["conv_in.weight"]


def checkpoints(config, out):
    return sorted(path.name for path in (run(config, out) / "checkpoints").iterdir())


def previews(config, out):
    return [Image.open(path).size for path in sorted((run(config, out) / "samples").glob("*.png"))]


def preview_pixels(config, out):
    (path,) = (run(config, out) / "samples").glob("*.png")
    return to_tensor(Image.open(path))


def evaluations(config, out):
    seen = []
    train(config, out, evaluator=lambda model: {"fid": float(len(seen)) if not seen.append(1) else 0.0})
    return len(seen)


def printed(config, out, capsys):
    run(config, out)
    return capsys.readouterr().out


def event_files(config, out):
    return sorted(path.name.split(".")[0] for path in run(config, out).rglob("events.out.*"))


EQUAL_BETAS = [0.05] * T
LEARNED = {"diffusion.loss": "hybrid"}
X_0 = {"diffusion.prediction": "x_0"}
MIN_SNR, P2 = {"diffusion.weighting": "min_snr"}, {"diffusion.weighting": "p2"}
PREVIEW = {"training.preview_every": 4, "training.preview_images": 1}

# field: (values, what else is set, probe)
ROWS = {
    "data.image_size": ([8, [8, 16]], {}, lambda c, o: tuple(pixels(c, o).shape[2:])),
    "data.channels": ([1, 3], {}, lambda c, o: pixels(c, o).shape[1]),
    "data.fit": (["crop", "pad"], {}, pixels),
    "data.background": ([255, 0], {}, pixels),
    "data.labels": ([True, False], {}, classes),
    "data.random_flip": ([False, True], {}, weights),
    "diffusion.schedule": (["linear", "quadratic", "cosine", "sigmoid", "constant"], {}, schedule),
    "diffusion.timesteps": ([T, T + 1], {}, lambda c, o: len(schedule(c, o))),
    "diffusion.beta_start": ([0.001, 0.002], {}, schedule),
    "diffusion.beta_end": ([0.2, 0.1], {}, schedule),
    "diffusion.zero_terminal_snr": ([False, True], X_0, schedule),
    "diffusion.prediction": (["epsilon", "x_0", "v"], {}, target),
    "diffusion.variance": (["fixed_small", "fixed_large"], {}, log_variance),
    "diffusion.loss": (["simple", "l1", "huber", "vlb"], {}, loss),
    "diffusion.weighting": (["none", "snr", "min_snr", "p2"], X_0, loss),
    "diffusion.min_snr_gamma": ([5.0, 1.0], MIN_SNR, loss),
    "diffusion.p2_gamma": ([1.0, 0.5], P2, loss),
    "diffusion.p2_k": ([1.0, 2.0], P2, loss),
    "diffusion.timestep_sampler": (["uniform", "stratified", "loss_aware"], {}, drawn_timesteps),
    "network.channels": ([8, 16], {}, parameters),
    "network.time_channels": ([None, 16], {}, parameters),
    "network.channel_mult": ([[1, 2], [1, 1]], {}, parameters),
    "network.blocks": ([1, 2], {}, parameters),
    "network.attention": ([[4], [8], []], {}, answer),
    "network.head_dim": ([None, 4], {}, answer),
    "network.heads": ([None, 4], {}, answer),
    "network.dropout": ([0.0, 0.5], {}, dropped),
    "network.groups": ([4, 8], {}, answer),
    "network.norm_eps": ([1e-6, 0.1], {}, answer),
    "network.conditioning": (["add", "scale_shift"], {}, parameters),
    "network.resample": (["conv", "resnet"], {}, parameters),
    "network.mid_attention": ([True, False], {}, parameters),
    "network.mid_attention_norm": ([True, False], {}, parameters),
    "network.freq_shift": ([1, 0], {}, answer),
    "network.flip_sin_to_cos": ([False, True], {}, answer),
    "network.downsample_padding": ([0, 1], {}, answer),
    "network.gradient_checkpointing": ([False, True], {}, block_calls),
    "training.steps": ([2, 3], {}, lambda c, o: len(metrics(c, o))),
    "training.optimizer": (["adam", "muon"], {}, raw_weights),
    "training.learning_rate": ([0.01, 0.02], {}, raw_weights),
    "training.grad_clip": ([None, 0.001], {"training.learning_rate": 1e-3}, logged("loss")),
    "training.ema_decay": ([0.9, 0.5], {"training.ema_warmup": False}, weights),
    "training.ema_warmup": ([True, False], {}, weights),
    "training.class_drop": ([0.0, 0.9], {}, raw_weights),
    "training.seed": ([0, 1], {}, raw_weights),
    "training.precision": (["fp32", "bf16"], {}, raw_weights),
    "training.preview_steps": ([1, 5], PREVIEW, preview_pixels),
}

# Fields whose effect has a known size are tested by it, below
MEASURED = {
    "data.source",
    "data.streaming",
    "data.shuffle_buffer",
    "diffusion.betas",
    "training.batch_size",
    "training.warmup",
    "training.lr_schedule",
    "training.compile",
    "training.micro_batch",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.preview_every",
    "training.preview_images",
    "training.evaluate_every",
    "training.max_bad_steps",
    "training.loggers",
}


def test_every_field_has_a_row():
    known = {
        f"{name}.{field}" for name, section in Config.model_fields.items() for field in section.annotation.model_fields
    }
    assert known == set(ROWS) | MEASURED


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) if a.shape == b.shape else False
    if isinstance(a, tuple):
        return all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("field", ROWS)
def test_field_changes_what_it_names(field, photos, tmp_path):
    values, extra, probe = ROWS[field]
    found = probed(photos, tmp_path, {field: extra}, probe, values)
    for i, value in enumerate(values):
        for j in range(i):
            assert not equal(found[i], found[j]), f"{field}: {values[j]} and {value} give the same"


def test_learned_variance_is_built(photos, tmp_path):
    config = configure(photos, {"diffusion.variance": "learned_range", **LEARNED})
    assert log_variance(config, tmp_path)[1]


def test_source_selects_the_images(photos, tmp_path):
    one = configure(photos, {"data.source": str(photos / "a"), "data.labels": False})
    assert len(data_set(one, tmp_path)[0]) == 6
    assert len(data_set(configure(photos, {}), tmp_path)[0]) == 12


def test_betas_replace_the_schedule(photos, tmp_path):
    found = schedule(configure(photos, {"diffusion.betas": EQUAL_BETAS}), tmp_path)
    assert torch.allclose(found, 0.95 ** torch.arange(1, T + 1, dtype=torch.float64))


def test_beta_start_and_end_are_the_ends_of_the_schedule(photos):
    for name in ("linear", "quadratic"):
        betas = configure(photos, {"diffusion.schedule": name}).diffusion.build().schedule.betas
        assert betas[0].item() == pytest.approx(0.001)
        assert betas[-1].item() == pytest.approx(0.2)


def test_learning_rate_follows_warmup_and_schedule(photos, tmp_path):
    """Warm-up over 2 of 6 steps, then to 0 at the end: by the formula, as logged."""
    rates = {}
    for name in ("constant", "linear", "cosine"):
        changes = {"training.steps": 6, "training.warmup": 2, "training.lr_schedule": name}
        rates[name] = logged("learning_rate")(configure(photos, changes), tmp_path / name)
    rise = [0.005, 0.01]
    left = [k / 4 for k in range(4)]
    assert rates["constant"] == pytest.approx(rise + [0.01] * 4)
    assert rates["linear"] == pytest.approx(rise + [0.01 * (1 - x) for x in left], abs=0.0026)
    assert rates["cosine"] == pytest.approx(rise + [0.005 * (1 + math.cos(math.pi * x)) for x in left], abs=0.0026)
    assert rates["linear"] != rates["cosine"]


def test_batch_size_counts_the_images(photos, tmp_path):
    assert logged("images")(configure(photos, {"training.batch_size": 6}), tmp_path) == [6, 12, 18, 24]


def test_checkpoints_are_written_and_kept(photos, tmp_path):
    changes = {"training.checkpoint_every": 1, "training.keep_checkpoints": 2}
    assert checkpoints(configure(photos, changes), tmp_path / "a") == ["000003", "000004"]
    assert checkpoints(configure(photos, {**changes, "training.keep_checkpoints": 3}), tmp_path / "b") == [
        "000002",
        "000003",
        "000004",
    ]


def test_log_every_counts_steps_per_line(photos, tmp_path):
    assert logged("step")(configure(photos, {"training.log_every": 2}), tmp_path) == [2, 4]


def test_previews_come_when_and_as_large_as_asked(photos, tmp_path):
    changes = {"training.preview_every": 2, "training.preview_images": 1, "training.preview_steps": 1}
    small = previews(configure(photos, changes), tmp_path / "a")
    large = previews(configure(photos, {**changes, "training.preview_images": 4}), tmp_path / "b")
    assert len(small) == len(large) == 2
    assert large[0][0] > small[0][0]


def test_evaluations_come_when_asked(photos, tmp_path):
    assert evaluations(configure(photos, {"training.evaluate_every": 0}), tmp_path / "a") == 0
    assert evaluations(configure(photos, {"training.evaluate_every": 1}), tmp_path / "b") == 4
    assert evaluations(configure(photos, {"training.evaluate_every": 2}), tmp_path / "c") == 2


def test_max_bad_steps_ends_the_run(photos, tmp_path, monkeypatch):
    """With a loss that is never finite, a run stops after max_bad_steps skipped steps in a row."""
    build = type(configure(photos, {}).diffusion).build_loss
    calls = []

    def bad_loss(self):
        good = build(self)

        def broken(*arguments):
            calls.append(1)
            return good(*arguments) * float("nan")

        return broken

    for allowed in (1, 3):
        config = configure(photos, {"training.steps": 9, "training.max_bad_steps": allowed})
        monkeypatch.setattr(type(config.diffusion), "build_loss", bad_loss)
        with pytest.raises(ddpm.common.errors.RunStopped):
            train(config, tmp_path / str(allowed))
        records = (tmp_path / str(allowed) / "metrics.jsonl").read_text().splitlines()
        assert len(records) <= allowed + 1
        monkeypatch.undo()
    assert calls


def test_loggers_write_their_files(photos, tmp_path):
    assert event_files(configure(photos, {}), tmp_path / "a") == []
    assert event_files(configure(photos, {"training.loggers": ["tensorboard"]}), tmp_path / "b") == ["events"]


def test_compile_and_micro_batch_reach_the_run(photos, tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    assert "micro-batch 8" in printed(configure(photos, {"training.compile": False}), tmp_path / "a", capsys)
    assert compiled == []
    changes = {"training.compile": True, "training.micro_batch": 3}
    assert "micro-batch 3" in printed(configure(photos, changes), tmp_path / "b", capsys)
    assert compiled == ["UNet"]


def test_streaming_reads_through_the_shuffle_buffer(tmp_path):
    """A buffer of one image keeps the order of the shard; a larger one does not."""
    import io
    import tarfile

    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for index in range(12):
            buffer = io.BytesIO()
            Image.new("L", (8, 8), 20 * index).save(buffer, "png")
            entry = tarfile.TarInfo(f"{index:02d}.png")
            entry.size = len(buffer.getvalue())
            tar.addfile(entry, io.BytesIO(buffer.getvalue()))
    orders = []
    for buffer in (1, 12):
        config = load_config(
            "digits",
            BASE
            | {"data.source": str(tmp_path / "set.tar"), "data.labels": False, "data.streaming": True}
            | {"data.shuffle_buffer": buffer},
        )
        data = open_dataset(config.data)
        assert type(data).__name__ == "StreamDataset"
        images, _ = data.draw(0, range(12))
        orders.append((images[:, 0, 0, 0] // 20).tolist())
        data.close()
    assert orders[0] == list(range(12))
    assert orders[1] != orders[0]
    assert sorted(orders[1]) == orders[0]
