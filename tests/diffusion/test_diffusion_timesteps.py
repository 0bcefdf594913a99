"""Training draws: uniform marginals, strata, importance weights, and independence of how a batch is split."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, LossAwareSampler, StratifiedSampler, UniformSampler


def whole(draw, step, batch, seed=0):
    return draw.draw(seed, step, torch.arange(batch), batch)


def trained(timesteps, seed=0):
    """A loss-aware draw with a full history, and the losses it was given in order."""
    generator = torch.Generator().manual_seed(seed)
    draw = LossAwareSampler(timesteps)
    losses = torch.rand(25, timesteps, generator=generator) * torch.linspace(3, 0.1, timesteps)
    for row in losses:
        order = torch.randperm(timesteps, generator=generator)
        draw.update(order, row[order])
    return draw, losses


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_a_draw_depends_on_seed_step_and_position_alone(name):
    draw = trained(50)[0] if name == "loss_aware" else TIMESTEP_SAMPLERS[name](50)
    t, weight = draw.draw(7, 3, torch.arange(24), 24)
    assert t.dtype == torch.int64
    assert weight.dtype == torch.float32
    for split in ([24], [12, 12], [5, 19], [1] * 24):
        parts = [draw.draw(7, 3, positions, 24) for positions in torch.arange(24).split(split)]
        assert torch.equal(torch.cat([part[0] for part in parts]), t)
        assert torch.equal(torch.cat([part[1] for part in parts]), weight)
    strided = [draw.draw(7, 3, torch.arange(rank, 24, 3), 24)[0] for rank in range(3)]
    assert torch.equal(torch.stack(strided, 1).flatten(), t)
    assert not torch.equal(draw.draw(7, 4, torch.arange(24), 24)[0], t)
    assert not torch.equal(draw.draw(8, 3, torch.arange(24), 24)[0], t)


@given(st.integers(1, 70), st.integers(2, 90), st.integers(0, 1000))
def test_each_stratum_is_hit_exactly_once(batch, timesteps, step):
    t, weight = whole(StratifiedSampler(timesteps), step, batch)
    assert (weight == 1).all()
    assert t.min() >= 0
    assert t.max() < timesteps
    # u in [i/B, (i+1)/B) gives a t between the floors of the stratum's ends.
    for i, value in enumerate(t.sort().values.tolist()):
        assert i * timesteps // batch <= value <= ((i + 1) * timesteps - 1) // batch
    if batch % timesteps == 0:
        assert (t.bincount(minlength=timesteps) == batch // timesteps).all()


@pytest.mark.parametrize("draw", [UniformSampler(2**50), StratifiedSampler(2**50)], ids=["uniform", "stratified"])
def test_timesteps_are_drawn_in_double_precision(draw):
    """Numbers of float32 would all be multiples of 2^20 here, and a large batch would miss some of its strata."""
    t, _ = whole(draw, 0, 6)
    assert (t % 2**20 != 0).all()


@pytest.mark.parametrize("draw", [UniformSampler(10), StratifiedSampler(10)], ids=["uniform", "stratified"])
def test_the_marginal_of_one_position_is_uniform(draw):
    t = torch.cat([draw.draw(1, step, torch.tensor([3]), 6)[0] for step in range(4000)])
    counts = t.bincount(minlength=10).numpy()
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 27.9  # 99.9% of χ² with 9 degrees of freedom


def test_uniform_positions_are_independent():
    t = torch.stack([whole(UniformSampler(1000), step, 2)[0] for step in range(2000)]).double()
    assert abs(np.corrcoef(t.T.numpy())[0, 1]) < 0.08


def test_loss_aware_follows_the_formula():
    """Nichol & Dhariwal 2021: p_t ∝ √E[L_t²] over the last ten losses, mixed with a thousandth of uniform."""
    draw, losses = trained(30)
    root = np.sqrt(np.mean(losses[-10:].double().numpy() ** 2, axis=0))
    expected = root / root.sum() * 0.999 + 0.001 / 30
    np.testing.assert_allclose(draw.probabilities().numpy(), expected, rtol=1e-12)
    t, weight = whole(draw, 0, 200)
    np.testing.assert_allclose(weight.numpy(), 1 / (30 * expected[t.numpy()]), rtol=1e-6)


def test_loss_aware_weights_are_unbiased():
    draw, _ = trained(20)
    draws = [whole(draw, step, 100) for step in range(300)]
    t, weight = (torch.cat(part) for part in zip(*draws, strict=True))
    frequency = t.bincount(minlength=20) / len(t)
    p = draw.probabilities()
    assert ((frequency - p).abs() < 4.5 * (p * (1 - p) / len(t)).sqrt()).all()
    f = torch.linspace(-1, 3, 20) ** 3
    estimates = weight * f[t]
    assert abs(estimates.mean() - f.mean()) < 4 * estimates.std() / len(t) ** 0.5


def test_loss_aware_is_uniform_until_all_timesteps_are_known():
    draw = LossAwareSampler(4)
    for _ in range(10):
        draw.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 5.0, 9.0]))
    assert (draw.probabilities() == 0.25).all()
    assert (whole(draw, 0, 16)[1] == 1).all()
    draw.update(torch.full((10,), 3), torch.ones(10))
    assert draw.probabilities().argmax() == 2
    for _ in range(10):
        draw.update(torch.arange(4), torch.zeros(4))
    assert (draw.probabilities() == 0.25).all()


def test_loss_aware_history_is_saved():
    draw, _ = trained(15)
    other = LossAwareSampler(15)
    other.load_state_dict(draw.state_dict())
    draw.update(torch.tensor([3, 3]), torch.tensor([50.0, 60.0]))
    assert not torch.equal(draw.history, other.history)
    other.update(torch.tensor([3, 3]), torch.tensor([50.0, 60.0]))
    assert torch.equal(whole(draw, 5, 64)[0], whole(other, 5, 64)[0])
