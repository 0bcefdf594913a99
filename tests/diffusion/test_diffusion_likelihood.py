"""The variational bound against a chain of Gaussian matrices, the exact density, and Ho et al.'s own formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from ddpm.diffusion.bound import VariationalBound, discretized_log_likelihood
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
DATA_MEAN, DATA_STD = 0.1, 0.25
NODES, WEIGHTS = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def schedule_of(timesteps):
    """A linear schedule that ends near noise for any T above 10."""
    return NoiseSchedule(make_betas("linear", timesteps, 0.1 / timesteps, 10 / timesteps))


def exact_x_0(schedule, x_t, t):
    """E[x_0|x_t] for data N(DATA_MEAN, DATA_STD²), where the optimal network is linear."""
    signal, sigma = schedule.alpha_sigma(t)
    gain = signal * DATA_STD**2 / (signal**2 * DATA_STD**2 + sigma**2)
    return DATA_MEAN + gain * (x_t - signal * DATA_MEAN)


def expected_terms(diffusion, x_0, fractions=None):
    """E over q(x_t|x_0) of every term for images of one pixel x_0 (M,): float64 (T, M), by Gauss-Hermite quadrature."""
    bound, schedule = VariationalBound(diffusion), diffusion.schedule
    pixels = x_0.repeat_interleave(len(NODES)).reshape(-1, 1, 1, 1)
    noise = NODES.repeat(len(x_0)).reshape(-1, 1, 1, 1)
    rows = []
    for t in range(len(schedule)):
        predicted = exact_x_0(schedule, diffusion.q_sample(pixels, t, noise), t)
        fraction = None if fractions is None else fractions[t]
        terms = bound.term(predicted, pixels, torch.full((len(pixels),), t), fraction)
        rows.append(terms.reshape(len(x_0), -1) @ WEIGHTS)
    return torch.stack(rows)


def test_bound_equals_a_chain_of_gaussian_matrices():
    """-ELBO = -E_q[log p(x_0…x_T)] - H(q), with p and q as joint Gaussians in float64 matrices; a density at x_0."""
    schedule = schedule_of(12)
    diffusion = GaussianDiffusion(schedule, variance="fixed_large")
    x_0 = 0.37
    T = len(schedule)
    # p: x_T ~ N(0, 1), x_{t-1} = a_t x_t + b_t + s_t z. Variables in the order x_0, x_1, …, x_T of the paper.
    A, b = np.eye(T + 1), np.zeros(T + 1)
    variances = np.ones(T + 1)
    for t in range(T):
        posterior = diffusion.posterior(t, t - 1)
        mean = [
            posterior.mean(exact_x_0(schedule, x, t), x).item() for x in torch.tensor([0.0, 1.0], dtype=torch.float64)
        ]
        A[t, t + 1], b[t], variances[t] = -(mean[1] - mean[0]), mean[0], diffusion.log_variance[t].exp()
    precision = A.T @ np.diag(1 / variances) @ A
    mean_p = np.linalg.solve(A, b)
    # q(x_1…x_T|x_0): Cov(x_s, x_t) = √(ᾱ_t/ᾱ_s) (1-ᾱ_s) for s ≤ t.
    alpha_bar = schedule.alphas_cumprod.numpy()
    early, late = np.minimum.outer(np.arange(T), np.arange(T)), np.maximum.outer(np.arange(T), np.arange(T))
    cov_q = np.sqrt(alpha_bar[late] / alpha_bar[early]) * (1 - alpha_bar[early])
    gap = np.concatenate([[x_0], np.sqrt(alpha_bar) * x_0]) - mean_p
    cross_entropy = 0.5 * (
        gap @ precision @ gap
        + np.trace(precision[1:, 1:] @ cov_q)
        + np.log(variances).sum()
        + (T + 1) * math.log(2 * math.pi)
    )
    entropy = 0.5 * (np.linalg.slogdet(cov_q)[1] + T * math.log(2 * math.pi * math.e))
    negative_elbo = cross_entropy - entropy

    pixel = torch.tensor([x_0], dtype=torch.float64)
    terms = expected_terms(diffusion, pixel)[1:].sum() * math.log(2)
    prior = VariationalBound(diffusion).prior(pixel.reshape(1, 1, 1, 1)).item() * math.log(2)
    x_1 = diffusion.q_sample(pixel, 0, NODES)
    decoder = -(Normal(exact_x_0(schedule, x_1, 0), math.sqrt(variances[0])).log_prob(pixel) @ WEIGHTS)
    assert prior + terms.item() + decoder.item() == pytest.approx(negative_elbo, abs=1e-9)


def test_the_exact_reverse_chain_reaches_the_exact_likelihood():
    """With the true mean and variance of x_{t-1}|x_t, known for Gaussian data, the bound is -log p(x_0), x_0 by x_0."""
    schedule = NoiseSchedule(make_betas("linear", 40, 0.01, 0.6))
    diffusion = GaussianDiffusion(schedule, variance="learned_range")
    low, high = schedule.posterior_log_variance, schedule.betas.log()
    marginal = schedule.alphas_cumprod_prev * DATA_STD**2 + 1 - schedule.alphas_cumprod_prev  # Var(x_{t-1})
    exact = (marginal * schedule.betas / ((1 - schedule.betas) * marginal + schedule.betas)).log()
    fractions = (exact - low) / (high - low)

    x_0 = LEVELS[30:220]
    prior = VariationalBound(diffusion).prior(x_0.reshape(-1, 1, 1, 1))
    bound = prior + expected_terms(diffusion, x_0, fractions).sum(0)
    log_p = Normal(DATA_MEAN, DATA_STD).log_prob(x_0) + math.log(2 / 255)
    torch.testing.assert_close(bound, -log_p / math.log(2), rtol=0, atol=5e-3)
    for worse in (fractions * 0, fractions * 0 + 1):  # on average over the data, not for each x_0
        assert log_p.exp() @ (prior + expected_terms(diffusion, x_0, worse).sum(0) - bound) > 0.01


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_term_is_a_kl_divergence(fraction):
    diffusion = GaussianDiffusion(schedule_of(30), variance="learned_range")
    x_0, predicted, noise = torch.rand(3, 6, 2, 4, 4, dtype=torch.float64).unbind(0)
    t = torch.tensor([1, 2, 9, 17, 28, 29])
    x_t = diffusion.q_sample(x_0, t, noise)
    terms = VariationalBound(diffusion).term(predicted, x_0, t, torch.full_like(x_0, fraction))
    for i, step in enumerate(t.tolist()):
        posterior = diffusion.posterior(step, step - 1)
        log_variance = fraction * math.log(posterior.beta) + (1 - fraction) * math.log(posterior.variance)
        kl = kl_divergence(
            Normal(posterior.mean(x_0[i], x_t[i]), posterior.variance**0.5),
            Normal(posterior.mean(predicted[i], x_t[i]), math.exp(log_variance / 2)),
        )
        assert terms[i].item() == pytest.approx(kl.mean().item() / math.log(2), rel=1e-9, abs=1e-12)


def test_prior_is_a_kl_divergence():
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 20)))  # far from noise at T
    x_0 = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    signal, sigma = diffusion.schedule.alpha_sigma(19)
    kl = kl_divergence(Normal(signal * x_0, torch.tensor(sigma).double()), Normal(0.0, 1.0))
    torch.testing.assert_close(VariationalBound(diffusion).prior(x_0), kl.mean((1, 2, 3)) / math.log(2))


@given(st.floats(-1.5, 1.5), st.floats(-3, 1.5))
def test_the_256_levels_sum_to_one(mean, log_std):
    """A normalised distribution over the levels, up to the floor of 1e-12 a level."""
    log_p = discretized_log_likelihood(LEVELS, torch.tensor(mean).double(), torch.tensor(log_std).double())
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def hos_log_likelihood(x, mean, log_std):
    """Ho et al.'s released code, written out plainly, in float64."""

    def cdf(y):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

    plus, minus = cdf((x - mean + 1 / 255) / log_std.exp()), cdf((x - mean - 1 / 255) / log_std.exp())
    mass = torch.where(x < -0.999, plus, torch.where(x > 0.999, 1 - minus, plus - minus))
    return mass.clamp(min=1e-12).log()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_decoder_equals_the_paper_s(dtype):
    x = LEVELS.repeat(64)
    mean = x + 0.4 * torch.randn(len(x), dtype=torch.float64)
    log_std = torch.empty(len(x), dtype=torch.float64).uniform_(-5, 1)
    theirs = hos_log_likelihood(x, mean, log_std)
    ours = discretized_log_likelihood(x.to(dtype), mean.to(dtype), log_std.to(dtype)).double()
    # The plain difference of two CDFs is itself only good to 1e-16 of mass.
    sound = theirs > math.log(1e-10)
    torch.testing.assert_close(ours[sound], theirs[sound], rtol=1e-3 if dtype == torch.float32 else 1e-5, atol=1e-5)
    assert ((ours - theirs)[~sound].abs() < 0.05).all()


def test_decoder_s_edges():
    std = torch.tensor(-2.0).double()
    for edge, beyond in ((-1.0, -3.0), (1.0, 3.0)):
        # A mean beyond the last level costs nothing: the tail is open. One level further in, it costs much.
        outer = torch.tensor([edge, edge * (1 - 1 / 127.5)]).double()
        log_p = discretized_log_likelihood(outer, torch.tensor(beyond).double(), std)
        assert log_p[0] > -1e-6
        assert log_p[1] < -20
    # Against the exact normal CDF, whose tanh approximation is off by at most 1e-3.
    exact = Normal(0.2, math.exp(-2)).cdf(LEVELS[100:130] + 1 / 255) - Normal(0.2, math.exp(-2)).cdf(
        LEVELS[100:130] - 1 / 255
    )
    ours = discretized_log_likelihood(LEVELS[100:130], torch.tensor(0.2).double(), std).exp()
    assert (ours - exact).abs().max() < 1e-4


@given(st.integers(0, 29), st.integers(0, 2**31))
def test_terms_are_never_negative_and_float32_will_do(t, seed):
    generator = torch.Generator().manual_seed(seed)
    diffusion = GaussianDiffusion(schedule_of(30), variance="learned_range")
    x_0 = LEVELS[torch.randint(0, 256, (2, 1, 4, 4), generator=generator)]
    predicted = (x_0 + 0.1 * torch.randn(x_0.shape, generator=generator)).clamp(-1, 1)
    fraction = torch.rand(x_0.shape, generator=generator, dtype=torch.float64)
    bound, times = VariationalBound(diffusion), torch.full((2,), t)
    exact = bound.term(predicted, x_0, times, fraction)
    assert (exact >= 0).all()
    single = bound.term(predicted.float(), x_0.float(), times, fraction.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)
