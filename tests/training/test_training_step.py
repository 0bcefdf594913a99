"""The training step against algorithm 1 of Ho et al. 2020, written out with PyTorch's own optimizer."""

import copy

import pytest
import torch

from ddpm.training import train
from ddpm.training.step import train_step
from ddpm.training.trainer import Trainer

RATE = 1e-3


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_train_step_is_algorithm_1(tiny, tmp_path, micro_batch):
    """The gradient of eq. 14, clipped to norm 1, and one step of Adam; any micro-batch gives the same."""
    trainer = Trainer(tiny(micro_batch=micro_batch, **{"network.dropout": 0.0}), tmp_path / "run")
    reference = copy.deepcopy(trainer.network)
    batch = trainer.batches.at(0)
    alphas_cumprod = (1 - torch.linspace(0.001, 0.2, 20, dtype=torch.float64)).cumprod(0)[batch.t].view(-1, 1, 1, 1)
    x_t = (alphas_cumprod.sqrt() * batch.x_0 + (1 - alphas_cumprod).sqrt() * batch.noise).float()
    predicted = reference(x_t, batch.t.float(), batch.labels)
    loss = (batch.noise - predicted).square().mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    torch.optim.Adam(reference.parameters(), lr=RATE).step()

    loss_found, norm_found, asked = train_step(trainer.learner, batch, RATE).numbers.tolist()
    assert loss_found == pytest.approx(loss.item(), rel=1e-5)
    assert norm_found == pytest.approx(norm.item(), rel=1e-4)
    assert asked == 0
    for mine, expected in zip(trainer.network.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(mine, expected, atol=0.02 * RATE)  # a step of Adam is about RATE


def test_train_step_leaves_the_weights_after_a_nonfinite_batch(tiny, tmp_path):
    trainer = Trainer(tiny(), tmp_path / "run")
    batch = trainer.batches.at(0)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    batch.x_0[2, 0, 1, 1] = torch.nan
    loss, _, _ = train_step(trainer.learner, batch, RATE).numbers.tolist()
    assert loss != loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.network.state_dict().items())


def test_train_step_passes_a_request_to_stop_on(tiny, tmp_path):
    trainer = Trainer(tiny(), tmp_path / "run")
    assert train_step(trainer.learner, trainer.batches.at(0), RATE, stop=True).numbers[2] == 1


def test_the_logged_learning_rate_is_that_of_the_last_step(tiny, files, tmp_path):
    run = train(tiny(steps=4, warmup=3, learning_rate=0.3), tmp_path / "run")
    rates = [record["learning_rate"] for record in files.records(run, "learning_rate")]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])
