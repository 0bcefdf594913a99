"""NaN and infinity are refused where they enter, with the tensor that holds them; none becomes a black picture."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ddpm
from ddpm.cli import run
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.pixels import final_images, to_uint8
from ddpm.editing import Editor, interpolate, sdedit
from ddpm.networks.inference import first_non_finite
from ddpm.restoration import Inpainting, restore
from ddpm.samplers import SAMPLERS
from ddpm.training import load_config, train
from ddpm.training.optimizer import Optimizer

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TINY = {
    "data.source": "digits",
    "network.channels": 8,
    "network.groups": 4,
    "network.channel_mult": [1, 2],
    "network.blocks": 1,
    "network.attention": [],
    "training.batch_size": 4,
    "training.preview_every": 0,
    "training.precision": "fp32",
    "training.loggers": [],
    "training.keep_checkpoints": 3,
}


@pytest.fixture(params=[float("nan"), float("inf"), float("-inf")], ids=["nan", "inf", "minus inf"])
def broken(request, tmp_path) -> Path:
    """The bundled model with one number that is not finite."""
    folder = tmp_path / "broken"
    shutil.copytree(Path(ddpm.__file__).parent / "assets" / "digits_model", folder)
    weights = load_file(folder / WEIGHTS)
    weights["conv_out.bias"].fill_(request.param)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture
def poisoned() -> ddpm.Model:
    """A model whose weights went wrong after it was loaded."""
    model = ddpm.load("digits")
    with torch.no_grad():
        model.network.conv_out.bias.fill_(float("nan"))
    return model


def test_first_non_finite_names_the_first_tensor():
    tensors = {"a": torch.ones(2), "steps": torch.tensor([3]), "b": torch.tensor([1.0, float("inf")])}
    assert first_non_finite(tensors) == "b"
    assert first_non_finite({name: tensors[name] for name in ("a", "steps")}) is None


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "MODEL", "--num", "1", "--steps", "2", "--out", "x.png"],
        ["trace", "MODEL", "--steps", "4", "--out", "x.gif"],
        ["restore", "MODEL", "clean.png", "--task", "inpaint", "--mask", "half", "--degrade", "--out", "x.png"],
        ["edit", "MODEL", "clean.png", "--strength", "0.3", "--out", "x.png"],
        ["evaluate", "MODEL", "--data", "digits", "--features", "builtin", "--metrics", "kid", "--out", "x.json"],
        ["convert", "MODEL", "x"],
        ["train", "digits", "--init", "MODEL", "--training.steps", "1", "--out", "x"],
    ],
    ids=lambda words: words[0],
)
def test_commands_refuse_a_model_that_is_not_finite(broken, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ddpm.save_grid(ddpm.load("digits").sample(1, steps=1), "clean.png")
    assert run([str(broken) if word == "MODEL" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert "numbers that are not finite, first in conv_out.bias" in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]


def test_convert_refuses_pickled_weights_that_are_not_finite(broken, tmp_path):
    weights = load_file(broken / WEIGHTS)
    (broken / WEIGHTS).unlink()
    torch.save(weights, broken / "unet" / "diffusion_pytorch_model.bin")
    assert run(["convert", str(broken), str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x: model.sample(1, steps=2),
        lambda model, x: ddpm.trace(model, steps=2),
        lambda model, x: restore(model, x, Inpainting((1, 28, 28), torch.arange(28).expand(28, 28) < 14), steps=2),
        lambda model, x: sdedit(Editor(model), x, 0.5, steps=4),
    ],
    ids=["sample", "trace", "restore", "sdedit"],
)
def test_results_of_weights_changed_in_place_are_refused(poisoned, use):
    with pytest.raises(UserError, match="not finite"):
        use(poisoned, torch.zeros(1, 1, 28, 28))


def test_an_overflow_with_good_weights_names_the_precision():
    model = ddpm.load("digits")
    with torch.no_grad():
        model.network.conv_out.bias.fill_(3e38)  # finite, but its products are not
    with pytest.raises(UserError, match="try --precision fp32"):
        model.sample(1, steps=2, guidance=8, labels=3, clip=None)


@pytest.fixture
def exploding(monkeypatch):
    """An optimizer that writes infinity into the weights at its third step."""
    step = Optimizer.step

    def explode(self, *arguments):
        norm = step(self, *arguments)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3:
            with torch.no_grad():
                self.parameters[0].view(-1)[0] = float("inf")
        return norm

    monkeypatch.setattr(Optimizer, "step", explode)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_run_never_ends_with_a_model_that_is_not_finite(exploding, steps, tmp_path):
    config = load_config("digits", TINY | {"training.steps": steps, "training.checkpoint_every": 2})
    message = r"after \d steps network: conv_in\.weight is not finite, so neither checkpoint nor model was written"
    with pytest.raises(RunStopped, match=message):
        train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000002"]
    assert first_non_finite(load_file(tmp_path / "run" / "model" / WEIGHTS)) is None


def test_resume_passes_over_a_checkpoint_that_is_not_finite(tmp_path, capsys):
    config = load_config("digits", TINY | {"training.steps": 4, "training.checkpoint_every": 2})
    out = train(config, tmp_path / "run")
    weights = load_file(out / "model" / WEIGHTS)
    checkpoint = out / "checkpoints" / "000004"
    tensors = load_file(checkpoint / "ema.safetensors")
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, checkpoint / "ema.safetensors")
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums["ema.safetensors"] = hashlib.sha256((checkpoint / "ema.safetensors").read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    train(config, out, resume=True)
    assert "holds values that are not finite (ema: conv_out.bias)" in capsys.readouterr().out
    assert torch.equal(load_file(out / "model" / WEIGHTS)["conv_out.bias"], weights["conv_out.bias"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_a_sample_that_ends_at_infinity_is_refused_before_it_is_clamped(value, sampler, monkeypatch):
    """Infinity clamped to [-1, 1] would be a white or black pixel that looks right."""
    spec = SAMPLERS[sampler]

    def ends_badly(denoiser, x_T, timesteps, **options):
        x_0 = spec.function(denoiser, x_T, timesteps, **options)
        x_0[-1, 0, 3, 5] = value
        return x_0

    monkeypatch.setitem(SAMPLERS, sampler, dataclasses.replace(spec, function=ends_badly))
    model, x = ddpm.load("digits"), torch.zeros(2, 1, 28, 28)
    for use in (
        lambda: model.sample(2, steps=2, sampler=sampler),
        lambda: ddpm.trace(model, steps=2, sampler=sampler),
        lambda: sdedit(Editor(model), x, 0.5, steps=4, sampler=sampler),
        lambda: interpolate(Editor(model), x[0], x[1], [0, 1], steps=4, sampler=sampler),
    ):
        with pytest.raises(UserError, match="not finite: try --precision fp32"):
            use()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(value):
    images = torch.zeros(2, 1, 4, 4)
    images[1, 0, 2, 3] = value
    with pytest.raises(UserError, match="not finite"):
        to_uint8(images)
    with pytest.raises(UserError, match="not finite"):
        final_images(images)
    assert torch.equal(final_images(images[:1]), images[:1])
