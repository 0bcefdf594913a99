"""Fine-tuning starts exactly where the given model was."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data import open_dataset
from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.model import Model, load
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training import train
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.finetune import build_network
from ddpm.training.trainer import Trainer

NULL = 2
X, T = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1, 3, 7, 12, 19])


def given(
    classes: list[str] | None = None, null: bool = True, size: int = 8, variance: str = "fixed_large", **options
) -> Model:
    """A model with every weight random."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[size // 2], groups=4, **options)
    rows = None if classes is None else len(classes) + null
    schedule = DiffusionConfig(timesteps=20, beta_start=0.001, beta_end=0.2).build_schedule()
    process = GaussianDiffusion(schedule, "v", variance)
    network = UNet(config, (size, size), 1, 1 + process.learns_variance, rows)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return Model(
        network.to(memory_format=torch.channels_last),  # the order that training keeps weights in
        process,
        image_shape=(1, size, size),
        class_names=classes,
        null_label=len(classes) if classes and null else None,
    )


def begin(config, tmp_path, model: Model) -> Trainer:
    return Trainer(config, tmp_path / "run", init=model)


def answers(network, labels: list[int] | None) -> torch.Tensor:
    """What a network says of X, outside training."""
    network.eval()
    with torch.no_grad():
        return network(X, T, None if labels is None else torch.tensor(labels))


def test_fine_tuned_model_names_its_origin_after_a_resume(tiny, tmp_path):
    model = given(["0", "1"])
    model.save(tmp_path / "given")
    run = train(tiny(steps=2, checkpoint_every=2), tmp_path / "run", init=tmp_path / "given")
    train(tiny(steps=4, checkpoint_every=2), run, resume=True)
    assert load(run).provenance["fine-tuned from"] == f"{tmp_path / 'given'} ({model.weights_hash})"
    assert model.weights_hash in (run / "model" / "README.md").read_text()


def test_init_with_the_same_classes_gives_the_same_predictions(tiny, tmp_path):
    model = given(["0", "1"])
    run = begin(tiny(**{"diffusion.prediction": "epsilon", "diffusion.loss": "l1"}), tmp_path, model)
    labels = [0, 1, NULL, 0, 1, NULL]
    assert torch.equal(answers(run.network, labels), answers(model.network, labels))
    averaged = run.model()
    assert torch.equal(answers(averaged.network, labels), answers(model.network, labels))
    assert averaged.diffusion.prediction == "v"  # the process is the model's, the objective the configuration's
    assert run.config.diffusion.loss == "l1"
    assert torch.equal(averaged.diffusion.schedule.betas, model.diffusion.schedule.betas)


def test_first_loss_of_a_fine_tuning_run_is_the_models(tiny, files, tmp_path):
    """The loss of the first step is the given model's, by its own formula."""
    model = given(["0", "1"])
    model.save(tmp_path / "given")
    run = train(tiny(steps=1, class_drop=0.0, **{"network.dropout": 0.0}), tmp_path / "run", init=tmp_path / "given")
    prepared = begin(tiny(class_drop=0.0, **{"network.dropout": 0.0}), tmp_path, model)
    batch = prepared.batches.at(0)
    x_t = model.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
    output = load(tmp_path / "given").network(x_t, batch.t.float(), batch.labels)
    expected = (output - model.diffusion.target(batch.x_0, batch.t, batch.noise)).square().mean()
    assert files.records(run, "loss")[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_init_matches_classes_by_name(tiny, tmp_path):
    model = given(["1", "other"])
    run = begin(tiny(), tmp_path, model)  # the data's classes are "0" and "1"
    assert torch.equal(answers(run.network, [1] * 6), answers(model.network, [0] * 6))
    assert torch.equal(answers(run.network, [0] * 6), answers(model.network, [NULL] * 6))
    assert torch.equal(answers(run.network, [NULL] * 6), answers(model.network, [NULL] * 6))


def named_images(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / name / "1.png")
    return str(folder)


@pytest.mark.parametrize(("given_names", "own"), [(["0", "1"], ["cat", "dog"]), (["cat", "dog"], ["0", "1"])])
def test_init_matches_numbered_classes_by_number(tiny, tmp_path, capsys, given_names, own):
    model = given(given_names)
    run = begin(tiny(**{"data.source": named_images(tmp_path / "data", own)}), tmp_path, model)
    labels = [0, 1, NULL, 0, 1, NULL]
    assert torch.equal(answers(run.network, labels), answers(model.network, labels))
    assert "classes taken over from a model: 2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "shared"), [(["1", "other"], 1), (["a", "b", "c"], 0), (None, 0)])
def test_init_prints_how_many_classes_match(tiny, tmp_path, capsys, names, shared):
    begin(tiny(), tmp_path, given(names))
    assert f"classes taken over from a model: {shared} of 2\n" in capsys.readouterr().out


def test_init_from_an_unconditional_model_starts_all_classes_alike(tiny, tmp_path):
    model = given()
    run = begin(tiny(), tmp_path, model)
    assert torch.equal(answers(run.network, [0, 1, NULL] * 2), answers(model.network, None))


def test_init_of_an_unconditional_run_starts_as_the_null_class(tiny, tmp_path):
    model = given(["0", "1"])
    run = begin(tiny(**{"data.labels": False}), tmp_path, model)
    assert torch.allclose(answers(run.network, None), answers(model.network, [NULL] * 6), rtol=1e-5, atol=1e-6)


def test_init_at_another_size_keeps_attention_at_its_level(tiny, tmp_path):
    model = given(["0", "1"], size=16)
    run = begin(tiny(**{"network.attention": [8]}), tmp_path, model)
    assert run.config.network.attention == [4]
    assert torch.equal(answers(run.network, [0] * 6), answers(model.network, [0] * 6))  # a U-Net takes any size


def test_fine_tuning_run_killed_before_its_first_checkpoint_is_not_resumed(tiny, tmp_path, monkeypatch):
    model, run = given(["0", "1"]), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            train(tiny(steps=1), run, init=model)
    with pytest.raises(UserError, match="no run in"):
        train(tiny(steps=1), run, resume=True)
    train(tiny(steps=1), run, init=model, overwrite=True)
    assert load(run).provenance["steps"] == 1


@pytest.mark.parametrize("timesteps", [20, 10])  # the model's schedule, and another
def test_init_requires_a_loss_that_suits_the_variance(tiny, tmp_path, timesteps):
    learned, steps = given(["0", "1"], variance="learned_range"), {"diffusion.timesteps": timesteps}
    with pytest.raises(UserError, match=r"loss simple cannot train .*: --diffusion\.loss hybrid"):
        begin(tiny(**steps), tmp_path, learned)
    hybrid = tiny(**steps, **{"diffusion.variance": "learned_range", "diffusion.loss": "hybrid"})
    assert begin(hybrid, tmp_path, learned).config.diffusion.build().learns_variance
    with pytest.raises(UserError, match=r"is fixed: --diffusion\.loss simple"):
        begin(hybrid, tmp_path, given(["0", "1"]))


def test_init_keeps_dropout_and_checkpointing_of_the_configuration(tiny, tmp_path):
    config = tiny(**{"network.gradient_checkpointing": True, "network.dropout": 0.3})
    network = begin(config, tmp_path, given(["0", "1"], dropout=0.1)).network.config
    assert (network.gradient_checkpointing, network.dropout) == (True, 0.3)


def test_init_that_does_not_fit_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="channels"):
        begin(tiny(**{"data.channels": 3}), tmp_path, given(["0", "1"]))
    with pytest.raises(UserError, match="no model at"):
        train(tiny(), tmp_path / "run", init="nowhere")
    assert not (tmp_path / "run").exists()


def test_the_first_weights_follow_from_the_seed_alone(tiny):
    found = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        config = tiny(seed=seed)
        network, null_label = build_network(config, open_dataset(config.data))
        assert torch.equal(torch.get_rng_state(), before)
        assert null_label == NULL
        found.append(network.conv_in.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
