"""Quiet errors: swapped arguments, defaults and bounds that symmetric inputs do not show."""

import inspect
import math

import pytest
import torch
from scipy.stats import norm

from ddpm.diffusion.bound import VariationalBound
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.loss import DiffusionLoss, loss_weights
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.diffusion.timestep_samplers import LossAwareSampler, StratifiedSampler, UniformSampler
from ddpm.training.config import Config

T = 20
SCHEDULE = NoiseSchedule(make_betas("linear", T, 0.001, 0.2))


@pytest.mark.parametrize(("level", "shift"), [(255, -0.03), (0, 0.02), (100, 0.01)])
def test_decoder_term_takes_the_bin_of_the_image(level, shift):
    """L_0 is the mass of N(prediction, σ²) on the bin of the image, not the reverse; the outer bins are open."""
    x_0, sigma = level / 127.5 - 1, math.exp(0.5 * float(GaussianDiffusion(SCHEDULE).log_variance[0]))
    low = -math.inf if level == 0 else -(shift + 1 / 255) / sigma
    high = math.inf if level == 255 else -(shift - 1 / 255) / sigma
    image, guess = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (x_0, x_0 + shift))
    bound, t = VariationalBound(GaussianDiffusion(SCHEDULE)), torch.tensor([0])
    mass = norm.cdf(high) - norm.cdf(low)
    assert bound.term(guess, image, t).item() == pytest.approx(-math.log2(mass), rel=0.01)
    if level in (0, 255):
        assert not torch.allclose(bound.term(guess, image, t), bound.term(image, guess, t), rtol=0.05)


@pytest.mark.parametrize("sampler", [UniformSampler, StratifiedSampler, LossAwareSampler])
def test_seed_and_step_are_not_interchangeable(sampler):
    draw = sampler(1000).draw
    positions = torch.arange(8)
    assert not torch.equal(draw(3, 5, positions, 8)[0], draw(5, 3, positions, 8)[0])
    assert torch.equal(draw(3, 5, positions[2:6], 8)[0], draw(3, 5, positions, 8)[0][2:6])


def test_loss_aware_sampler_wants_a_loss_per_timestep():
    with pytest.raises(ValueError, match="zip"):
        LossAwareSampler(T).update(torch.tensor([1, 2]), torch.tensor([0.5]))


def test_loss_aware_sampler_stays_below_the_last_timestep(monkeypatch):
    """Ten times 0.1 add up to less than one, and a uniform number may lie between the two."""
    sampler, u = LossAwareSampler(10), math.nextafter(1, 0)
    assert sampler.probabilities().cumsum(0)[-1] <= u
    monkeypatch.setattr(
        "ddpm.diffusion.timestep_samplers._uniform", lambda *_: torch.tensor([u, 0], dtype=torch.float64)
    )
    t, weight = sampler.draw(0, 0, torch.arange(2), 2)
    assert t.tolist() == [9, 0]
    assert weight.tolist() == [1, 1]


@pytest.mark.parametrize("sampler", [UniformSampler, StratifiedSampler])
def test_draws_are_as_fine_as_float64(sampler):
    """With more timesteps than float32 can tell apart, not all are multiples of a large power of two."""
    t, _ = sampler(2**40).draw(0, 0, torch.arange(4), 4)
    assert (t % 2**16 != 0).all()


def test_schedule_keeps_float64_whatever_it_is_given():
    for betas in (torch.linspace(0.01, 0.2, 7), [0.1, 0.2], torch.linspace(0.01, 0.2, 7, dtype=torch.float16)):
        assert NoiseSchedule(betas).alphas_cumprod.dtype == torch.float64


def test_defaults_of_the_loss_are_those_of_the_configuration():
    defaults = {name: p.default for name, p in inspect.signature(DiffusionLoss.__init__).parameters.items()}
    section = Config.model_fields["diffusion"].annotation
    for name in ("loss", "weighting", "min_snr_gamma", "p2_gamma", "p2_k"):
        assert defaults[name] == section.model_fields[name].default
    of_weights = {name: p.default for name, p in inspect.signature(loss_weights).parameters.items()}
    for name in ("min_snr_gamma", "p2_gamma", "p2_k"):
        assert of_weights[name] == section.model_fields[name].default
    assert GaussianDiffusion(SCHEDULE) == GaussianDiffusion(SCHEDULE, "epsilon", "fixed_small")
    made = inspect.signature(make_betas).parameters
    assert [made[name].default for name in ("beta_start", "beta_end")] == [1e-4, 0.02]


def test_a_saved_history_does_not_change_when_training_goes_on():
    sampler, other = LossAwareSampler(3), LossAwareSampler(3)
    sampler.update(torch.tensor([0, 2]), torch.tensor([0.5, 0.25]))
    saved = sampler.state_dict()
    other.load_state_dict(saved)
    for each in (sampler, other):
        each.update(torch.tensor([1, 2]), torch.tensor([4.0, 5.0]))
    assert saved["seen"].tolist() == [1, 0, 1]
    assert saved["history"][:, :2].tolist() == [[0.5, 0.0], [0.0, 0.0], [0.25, 0.0]]
    assert other.seen.tolist() == [1, 1, 2]
    assert other.history[:, :2].tolist() == [[0.5, 0.0], [4.0, 0.0], [0.25, 5.0]]
    for fixed in (UniformSampler(3), StratifiedSampler(3)):
        assert fixed.state_dict() == {}
        assert not fixed.adaptive
