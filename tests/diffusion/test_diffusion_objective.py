"""The objective against closed forms, autograd of the bound written out, and the papers' equivalences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.loss import DiffusionLoss, loss_weights
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr

T = 50
BETAS = make_betas("linear", T, 2e-3, 0.3)
SCHEDULE = NoiseSchedule(BETAS)
PREDICTIONS = ["epsilon", "x_0", "v"]


def batch(seed=0, n=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(0, 256, (n, 3, 5, 4), generator=generator).to(dtype) / 127.5 - 1
    noise = torch.randn(x_0.shape, generator=generator, dtype=dtype)
    return x_0, noise, torch.randint(0, T, (n,), generator=generator)


def as_prediction(diffusion, x_0, x_t, t):
    """What a network of this process would answer to mean `x_0`."""
    return diffusion.target(x_0, t, diffusion.epsilon_from_x_0(x_0, x_t, t))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_network_reaches_the_exact_loss(prediction):
    """For Gaussian data the best prediction is linear in x_t, and the best loss is its conditional variance."""
    diffusion = GaussianDiffusion(SCHEDULE, prediction)
    generator = torch.Generator().manual_seed(3)
    std, mean = 0.4, -0.2
    x_0 = mean + std * torch.randn(8, 1, 150, 150, generator=generator)
    noise = torch.randn(x_0.shape, generator=generator)
    t = torch.tensor([0, 3, 10, 20, 25, 30, 40, T - 1])
    alpha_bar = SCHEDULE.alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
    total = alpha_bar * std**2 + 1 - alpha_bar
    x_t = diffusion.q_sample(x_0, t, noise)
    best = mean + alpha_bar.sqrt() * std**2 / total * (x_t - alpha_bar.sqrt() * mean)
    loss = DiffusionLoss(diffusion)(as_prediction(diffusion, best, x_t, t), x_0, x_t, t, noise)
    error_of_x_0 = std**2 * (1 - alpha_bar) / total  # Var(x_0|x_t)
    scale = {"x_0": 1.0, "epsilon": alpha_bar / (1 - alpha_bar), "v": 1 / (1 - alpha_bar)}[prediction]
    torch.testing.assert_close(loss, (error_of_x_0 * scale).flatten(), rtol=0.05, atol=0)


@pytest.mark.parametrize("weighting", ["snr", "min_snr", "p2"])
@given(seed=st.integers(0, 2**31))
def test_a_weighting_means_the_same_for_every_prediction(weighting, seed):
    """The same predicted x_0 costs the same, whatever the network calls it."""
    x_0, noise, t = batch(seed, dtype=torch.float64)
    guess = x_0 + 0.3 * batch(seed + 1, dtype=torch.float64)[1]
    losses = []
    for prediction in PREDICTIONS:
        diffusion = GaussianDiffusion(SCHEDULE, prediction)
        x_t = diffusion.q_sample(x_0, t, noise)
        output = as_prediction(diffusion, guess, x_t, t)
        losses.append(DiffusionLoss(diffusion, "simple", weighting)(output, x_0, x_t, t, noise))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-4, atol=0)


def test_weightings_are_the_papers():
    snr = SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod)
    epsilon, x_0, v = (GaussianDiffusion(SCHEDULE, prediction) for prediction in PREDICTIONS)
    close = torch.testing.assert_close
    close(loss_weights(x_0, "snr"), snr)
    close(loss_weights(epsilon, "snr"), torch.ones_like(snr))
    # Hang et al. 2023, section 3.4: min(SNR, γ) for x_0, over SNR for ε, over SNR + 1 for v.
    close(loss_weights(x_0, "min_snr", min_snr_gamma=3.0), snr.clamp(max=3))
    close(loss_weights(epsilon, "min_snr", min_snr_gamma=3.0), snr.clamp(max=3) / snr)
    close(loss_weights(v, "min_snr", min_snr_gamma=3.0), snr.clamp(max=3) / (snr + 1))
    for diffusion in (epsilon, x_0, v):
        close(loss_weights(diffusion, "min_snr", min_snr_gamma=math.inf), loss_weights(diffusion, "snr"))
        close(loss_weights(diffusion, "p2", p2_gamma=0.0), loss_weights(diffusion, "snr"))
        assert (loss_weights(diffusion, "none") == 1).all()
    close(loss_weights(epsilon, "p2", p2_gamma=0.5, p2_k=2.0), (2 + snr) ** -0.5)


@pytest.mark.parametrize("weighting", ["snr", "min_snr", "p2"])
@pytest.mark.parametrize("prediction", ["x_0", "v"])
def test_zero_terminal_snr_keeps_its_last_timestep(prediction, weighting):
    diffusion = GaussianDiffusion(NoiseSchedule(rescale_zero_terminal_snr(BETAS)), prediction)
    weights = loss_weights(diffusion, weighting)
    assert weights.isfinite().all()
    assert (weights > 0).all()
    assert weights[-1] == 1
    assert weights[-2] < 0.1
    x_0, noise, _ = batch()
    t = torch.full((len(x_0),), T - 1)
    loss = DiffusionLoss(diffusion, "simple", weighting)(torch.zeros_like(x_0), x_0, noise, t, noise)
    torch.testing.assert_close(loss, x_0.square().mean((1, 2, 3)))


def test_l1_and_huber():
    diffusion = GaussianDiffusion(SCHEDULE)
    x_0, noise, t = batch()
    x_t = diffusion.q_sample(x_0, t, noise)
    error = 3 * torch.randn_like(noise)
    l1 = DiffusionLoss(diffusion, "l1")(noise + error, x_0, x_t, t, noise)
    torch.testing.assert_close(l1, error.abs().mean((1, 2, 3)))
    huber = DiffusionLoss(diffusion, "huber")(noise + error, x_0, x_t, t, noise)
    expected = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
    torch.testing.assert_close(huber, expected.mean((1, 2, 3)))


def test_simple_is_the_bound_reweighted():
    """Ho et al. eq. 12: with fixed variance, L_{t-1} = β²/(2σ²α(1-ᾱ)) |ε - ε̂|² + what does not depend on ε̂."""
    diffusion = GaussianDiffusion(SCHEDULE, variance="fixed_small")
    x_0, noise, _ = batch()
    t = torch.tensor([1, 2, 5, 20, 40, T - 1])
    x_t = diffusion.q_sample(x_0, t, noise)
    output = torch.randn_like(noise)
    squared = DiffusionLoss(diffusion)(output, x_0, x_t, t, noise).double()
    beta, alpha_bar, variance = SCHEDULE.betas[t], SCHEDULE.alphas_cumprod[t], SCHEDULE.posterior_variance[t]
    expected = beta**2 / (2 * variance * (1 - beta) * (1 - alpha_bar)) * squared / math.log(2) * T
    vlb = DiffusionLoss(diffusion, "vlb")(output, x_0, x_t, t, noise)
    torch.testing.assert_close(vlb.double(), expected, rtol=1e-4, atol=0)


def test_hybrid_trains_the_mean_by_mse_and_the_variance_by_the_bound():
    diffusion = GaussianDiffusion(SCHEDULE, variance="learned_range")
    x_0, noise, _ = batch()
    t = torch.tensor([1, 2, 5, 20, 40, T - 1])
    x_t = diffusion.q_sample(x_0, t, noise)
    mean = torch.randn_like(noise).requires_grad_()
    raw = torch.randn_like(noise).requires_grad_()
    loss = DiffusionLoss(diffusion, "hybrid")(torch.cat([mean, raw], 1), x_0, x_t, t, noise)
    mean_grad, raw_grad = torch.autograd.grad(loss.sum(), [mean, raw])

    mse = (mean - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(mean_grad, torch.autograd.grad(mse.sum(), mean)[0])
    predicted = diffusion.predicted_x_0(mean.detach(), x_t, t)
    vlb = []
    for i, step in enumerate(t.tolist()):
        posterior = diffusion.posterior(step, step - 1)
        log_variance = (raw[i] + 1) / 2 * math.log(posterior.beta)
        log_variance = log_variance + (1 - raw[i]) / 2 * math.log(posterior.variance)
        true = Normal(posterior.mean(x_0[i], x_t[i]), posterior.variance**0.5)
        model = Normal(posterior.mean(predicted[i], x_t[i]), (0.5 * log_variance).exp())
        vlb.append(kl_divergence(true, model).mean() / math.log(2))
    vlb = torch.stack(vlb) * T / 1000
    torch.testing.assert_close(loss, mse + vlb, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw_grad, torch.autograd.grad(vlb.sum(), raw)[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_gradients_stay_finite_for_wild_outputs(loss):
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000)), variance="learned_range")
    x_0, noise, _ = batch()
    t = torch.tensor([0, 0, 1, 500, 998, 999])
    x_t = diffusion.q_sample(x_0, t, noise)
    output = (10 * torch.randn(6, 6, 5, 4)).requires_grad_()
    value = DiffusionLoss(diffusion, loss)(output, x_0, x_t, t, noise)
    value.sum().backward()
    assert value.isfinite().all()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "variance"), [("simple", "fixed_large"), ("hybrid", "learned_range")])
def test_half_precision_outputs_are_judged_in_float32(loss, variance):
    diffusion = GaussianDiffusion(SCHEDULE, variance=variance)
    x_0, noise, t = batch()
    x_t = diffusion.q_sample(x_0, t, noise)
    output = torch.randn(len(x_0), 6 if diffusion.learns_variance else 3, 5, 4).bfloat16()
    objective = DiffusionLoss(diffusion, loss)
    value = objective(output, x_0, x_t, t, noise)
    assert value.dtype == torch.float32
    assert value.shape == (len(x_0),)
    assert torch.equal(value, objective(output.float(), x_0, x_t, t, noise))
    halves = [tensor.bfloat16() for tensor in (x_0, x_t, noise)]
    wide = [tensor.float() for tensor in halves]
    assert torch.equal(objective(output, *halves[:2], t, halves[2]), objective(output, *wide[:2], t, wide[2]))


@pytest.mark.parametrize(
    ("loss", "weighting", "variance"),
    [
        ("hybrid", "none", "fixed_small"),
        ("simple", "none", "learned_range"),
        ("l1", "snr", "fixed_small"),
        ("vlb", "p2", "fixed_small"),
    ],
)
def test_contradictions_are_refused(loss, weighting, variance):
    with pytest.raises(UserError, match=r"use|needs"):
        DiffusionLoss(GaussianDiffusion(SCHEDULE, variance=variance), loss, weighting)
