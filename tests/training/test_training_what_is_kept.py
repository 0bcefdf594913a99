"""What a run keeps of what came before: the numbers of its last evaluation, and the classes of its first weights."""

import pytest
import torch

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model, load
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training import train
from ddpm.training.finetune import copy_weights

NETWORK = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)


def test_a_resumed_run_keeps_the_numbers_of_its_last_evaluation(tiny, tmp_path):
    values = iter((3.0, 1.0, 2.0))
    run = train(
        tiny(steps=3, checkpoint_every=1, evaluate_every=1),
        tmp_path / "run",
        evaluator=lambda model: {"fid": next(values)},
    )
    train(tiny(steps=4, checkpoint_every=1), run, resume=True)  # without an evaluation of its own
    provenance = load(run, device="cpu").provenance
    assert provenance["steps"] == 4
    assert provenance["metrics"] == {"step": 3, "fid": 2.0}
    assert load(run / "best", device="cpu").provenance["metrics"] == {"step": 2, "fid": 1.0}


def network(rows: int | None) -> UNet:
    made = UNet(NETWORK, (8, 8), 1, 1, rows)
    generator = torch.Generator().manual_seed(rows or 0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return made


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("names", [["new", "b", "c"], ["c", "new", "other", "a"], None])
def test_an_unknown_class_starts_as_no_class_or_as_the_mean_of_all(names, null):
    known, process = ["a", "b", "c"], GaussianDiffusion(NoiseSchedule(make_betas("linear", 5, 0.1, 0.5)))
    given = network(len(known) + null)
    rows = given.class_embedding.weight.detach().double()
    base = rows[-1] if null else sum(rows) / len(rows)
    model = Model(given, process, image_shape=(1, 8, 8), class_names=known, null_label=3 if null else None)
    made = network(None if names is None else len(names))
    shared = copy_weights(made, model, names)
    if names is None:
        expected = given.time_embedding.linear_2.bias.double() + base
        torch.testing.assert_close(made.time_embedding.linear_2.bias.double(), expected)
        return
    assert shared == len(set(names) & set(known))
    for name, row in zip(names, made.class_embedding.weight, strict=True):
        torch.testing.assert_close(row.double(), rows[known.index(name)] if name in known else base)
