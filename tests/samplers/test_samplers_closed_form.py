"""Samplers where the exact answer is known: Gaussian and Gaussian-mixture data, whose ε is exact at any t."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
from ddpm.samplers import SAMPLERS, Denoiser, timestep_grid

LINEAR = NoiseSchedule(make_betas("linear", 1000))
COSINE = NoiseSchedule(make_betas("cosine", 1000))
ZERO_SNR = NoiseSchedule(rescale_zero_terminal_snr(make_betas("linear", 1000)))
LONG = NoiseSchedule(make_betas("linear", 5000))  # ends at ᾱ = 1e-22

DETERMINISTIC = ["ddim", "dpm++", "unipc", "heun"]


class Mixture:
    """Pixels drawn independently from a mixture of N(mean, deviation²): its exact network, and its marginals."""

    def __init__(self, means, deviation: float, weights=None):
        self.means = torch.tensor(means, dtype=torch.float64)
        self.variance = deviation**2
        self.weights = torch.tensor(weights or [1 / len(means)] * len(means), dtype=torch.float64)

    def denoiser(self, schedule: NoiseSchedule, prediction="epsilon", variance="fixed_small", clip=None) -> Denoiser:
        def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            signal, sigma = schedule.alpha_sigma(t[0].item())
            spread = signal**2 * self.variance + sigma**2
            away = x_t[..., None] - signal * self.means
            responsibility = torch.softmax(self.weights.log() - away**2 / (2 * spread), -1)
            x_0 = (responsibility * (self.means + signal * self.variance / spread * away)).sum(-1)
            if prediction == "v":  # v = (√ᾱ x_t - x_0)/√(1-ᾱ), finite where no signal is left
                return (signal * x_t - x_0) / sigma
            return (x_t - signal * x_0) / sigma

        return Denoiser(network, GaussianDiffusion(schedule, prediction, variance), clip=clip)

    def cdf(self, x: Tensor, signal: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Of √ᾱ x_0 + √(1-ᾱ) ε."""
        spread = math.sqrt(signal**2 * self.variance + sigma**2)
        return (self.weights * torch.special.ndtr((x[..., None] - signal * self.means) / spread)).sum(-1)

    def quantile(self, probability: Tensor, signal: float = 1.0, sigma: float = 0.0) -> Tensor:
        low, high = torch.full_like(probability, -10), torch.full_like(probability, 10)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, signal, sigma) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


GAUSSIAN = Mixture([0.3], 0.2)
TWO_MODES = Mixture([-0.6, 0.7], 0.1, [0.3, 0.7])


def images(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def falls_below(limit: float, errors: list[float]) -> bool:
    """Each error is smaller than the one before, until they are below the limit; and they end there."""
    return errors[-1] < limit and all(fine < coarse or fine < limit for coarse, fine in itertools.pairwise(errors))


def no_noise():
    raise AssertionError("a deterministic sampler drew noise")


# --- a linear denoiser makes a sampler an affine map of (x_T, z_1, z_2, …): read its coefficients off by impulses


def mean_and_variance(name: str, denoiser: Denoiser, timesteps: list[float], **options) -> tuple[float, float]:
    """Exact mean and variance of the output, from the answers to unit impulses in x_T and in each noise."""
    draws = len(timesteps)
    x_T = torch.zeros(draws + 1, 1, 1, 1, dtype=torch.float64)
    x_T[1] = 1
    position = 1

    def noise() -> Tensor:
        nonlocal position
        position += 1
        impulse = torch.zeros_like(x_T)
        impulse[position] = 1
        return impulse

    answers = SAMPLERS[name](denoiser, x_T, timesteps, noise=noise, **options).flatten()
    gains = answers[1:] - answers[0]
    return answers[0].item(), (gains**2).sum().item()


def recursion(schedule: NoiseSchedule, timesteps, data: Mixture, step) -> tuple[float, float]:
    """Push mean and variance through x_prev = p E[x_0|x_t] + q x_t + r z, with (p, q, r) = step(ᾱ, ᾱ_prev)."""
    alphas_cumprod = [*schedule.alphas_cumprod.tolist(), 1.0]
    mean, variance, m, v = 0.0, 1.0, data.means.item(), data.variance
    for t, t_prev in itertools.pairwise(timesteps):
        a, a_prev = alphas_cumprod[int(t)], alphas_cumprod[int(t_prev)]
        slope = math.sqrt(a) * v / (a * v + 1 - a)
        p, q, r = step(a, a_prev)
        gain = p * slope + q
        mean, variance = gain * mean + p * m * (1 - slope * math.sqrt(a)), gain**2 * variance + r**2
    return mean, variance


def ancestral_step(large: bool):
    def step(a, a_prev):
        beta = 1 - a / a_prev
        sigma2 = beta if large else beta * (1 - a_prev) / (1 - a)
        return (
            math.sqrt(a_prev) * beta / (1 - a),
            math.sqrt(1 - beta) * (1 - a_prev) / (1 - a),
            math.sqrt(sigma2) * (a_prev < 1),
        )

    return step


def ddim_step(eta: float):
    def step(a, a_prev):
        sigma = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        direction = math.sqrt(1 - a_prev - sigma**2) / math.sqrt(1 - a)
        return math.sqrt(a_prev) - direction * math.sqrt(a), direction, sigma

    return step


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 10, 73])
@pytest.mark.parametrize(
    ("name", "variance", "options", "step"),
    [
        ("ancestral", "fixed_small", {}, ancestral_step(large=False)),
        ("ancestral", "fixed_large", {}, ancestral_step(large=True)),
        ("ddim", "fixed_small", {"eta": 0.0}, ddim_step(0.0)),
        ("ddim", "fixed_small", {"eta": 0.5}, ddim_step(0.5)),
        ("ddim", "fixed_small", {"eta": 1.0}, ddim_step(1.0)),
    ],
)
def test_mean_and_variance_follow_their_own_recursion(name, variance, options, step, steps, schedule):
    timesteps = timestep_grid(schedule, steps)
    measured = mean_and_variance(name, GAUSSIAN.denoiser(schedule, variance=variance), timesteps, **options)
    assert measured == pytest.approx(recursion(schedule, timesteps, GAUSSIAN, step), rel=1e-9, abs=1e-12)


def test_ddim_with_eta_1_is_ancestral_with_the_small_variance():
    timesteps = timestep_grid(LINEAR, 20)
    assert ddim_step(1.0)(0.5, 0.8) == pytest.approx(ancestral_step(large=False)(0.5, 0.8))
    as_ddim = mean_and_variance("ddim", GAUSSIAN.denoiser(LINEAR), timesteps, eta=1.0)
    assert as_ddim == pytest.approx(mean_and_variance("ancestral", GAUSSIAN.denoiser(LINEAR), timesteps), rel=1e-9)


@pytest.mark.parametrize("fraction", [0.0, 0.35, 1.0])
def test_learned_variance_lies_between_the_two_fixed_ones_in_log_space(fraction):
    timesteps = timestep_grid(LINEAR, 25)
    plain = GAUSSIAN.denoiser(LINEAR).network

    def network(x_t, t, labels):
        return torch.cat([plain(x_t, t, labels), torch.full_like(x_t, 2 * fraction - 1)], 1)

    learned = Denoiser(network, GaussianDiffusion(LINEAR, "epsilon", "learned_range"), clip=None)

    def step(a, a_prev):
        p, q, small = ancestral_step(large=False)(a, a_prev)
        large = ancestral_step(large=True)(a, a_prev)[2]
        return p, q, large**fraction * small ** (1 - fraction) if small else 0.0

    measured = mean_and_variance("ancestral", learned, timesteps)
    assert measured == pytest.approx(recursion(LINEAR, timesteps, GAUSSIAN, step), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ancestral", {}), ("ddim", {"eta": 0.0}), ("ddim", {"eta": 1.0}), ("dpm++", {}), ("dpm++sde", {}), ("unipc", {})],
)
def test_mean_and_variance_converge_to_the_datas(name, options):
    errors = []
    for steps in (10, 30, 100, 300, 1000):
        timesteps = timestep_grid(LINEAR, steps)
        mean, variance = mean_and_variance(name, GAUSSIAN.denoiser(LINEAR), timesteps, **options)
        errors.append(abs(math.sqrt(variance) - 0.2) / 0.2)
    assert mean == pytest.approx(0.3, abs=0.005)
    assert falls_below(0.02, errors)


def test_drawn_samples_have_the_recursions_mean_and_variance():
    timesteps, n = timestep_grid(LINEAR, 20), 40_000
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    drawn = SAMPLERS["ancestral"](GAUSSIAN.denoiser(LINEAR), noise(), timesteps, noise=noise)
    mean, variance = recursion(LINEAR, timesteps, GAUSSIAN, ancestral_step(large=False))
    assert drawn.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert drawn.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


# --- in one dimension the probability-flow ODE keeps quantiles, so its exact solution is F_end⁻¹(F_start(x))


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_find_the_quantiles_of_a_mixture(name, schedule):
    x_T = images(torch.linspace(-3, 3, 101, dtype=torch.float64))
    exact = TWO_MODES.quantile(TWO_MODES.cdf(x_T, *schedule.alpha_sigma(999)))
    errors = []
    for steps in (10, 50, 250, 1000):
        answer = SAMPLERS[name](
            TWO_MODES.denoiser(schedule), x_T, timestep_grid(schedule, steps, "log_snr"), noise=no_noise
        )
        errors.append((answer - exact).abs().mean().item())
    assert falls_below(0.002 if name != "ddim" else 0.005, errors)


@pytest.mark.parametrize(
    ("name", "options"), [("ancestral", {}), ("ddim", {"eta": 1.0}), ("dpm++sde", {}), ("ddim", {"eta": 0.3})]
)
def test_stochastic_samplers_draw_from_a_mixture(name, options):
    """The largest gap between the drawn and the true distribution function (Kolmogorov-Smirnov)."""
    n, generator = 8000, torch.Generator().manual_seed(1)

    def noise():
        return torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    drawn = SAMPLERS[name](
        TWO_MODES.denoiser(LINEAR), noise(), timestep_grid(LINEAR, 150, "log_snr"), noise=noise, **options
    )
    ranks = TWO_MODES.cdf(drawn.flatten().sort().values)
    assert (ranks - torch.linspace(0, 1, n, dtype=torch.float64)).abs().max() < 0.02


@pytest.mark.parametrize("data", [GAUSSIAN, TWO_MODES], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddim", {}, 1),
        ("dpm++", {}, 2),
        ("heun", {}, 2),
        ("unipc", {}, 3),
    ],
)
def test_order_of_convergence(name, options, order, data):
    """Halving the step of a uniform log-SNR grid with fixed ends divides the error by 2^order.

    UniPC's predictor is of second order, its corrector of third (Zhao et al. 2023, theorem 3.1).
    """
    start, end = LINEAR.log_snr(900), LINEAR.log_snr(20)
    x_start = images(torch.linspace(-2.5, 2.5, 41, dtype=torch.float64))
    exact = data.quantile(
        data.cdf(x_start, *LINEAR.alpha_sigma(LINEAR.t_from_log_snr(start))),
        *LINEAR.alpha_sigma(LINEAR.t_from_log_snr(end)),
    )
    errors = []
    for steps in (80, 160, 320):
        timesteps = [LINEAR.t_from_log_snr(value) for value in np.linspace(start, end, steps + 1)]
        answer = SAMPLERS[name](data.denoiser(LINEAR), x_start, timesteps, noise=no_noise, **options)
        errors.append((answer - exact).abs().mean().item())
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert ratios[-1] == pytest.approx(2**order, rel=0.12), f"errors {errors}, ratios {ratios}"


# --- both ends


@pytest.mark.parametrize("schedule", [ZERO_SNR, LINEAR, COSINE], ids=["zero_snr", "linear", "cosine"])
@pytest.mark.parametrize("spacing", ["trailing", "log_snr"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_starts_anywhere_and_ends_at_the_data(name, spacing, schedule):
    prediction = "v" if schedule.zero_terminal_snr else "epsilon"
    n, generator = 4000, torch.Generator().manual_seed(2)

    def noise():
        return torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    last = []
    drawn = SAMPLERS[name](
        GAUSSIAN.denoiser(schedule, prediction),
        noise(),
        timestep_grid(schedule, 100, spacing),
        noise=noise,
        callback=lambda step: last.append(step),
    )
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.2, abs=0.03)
    assert last[-1].t_prev == -1
    assert torch.equal(drawn, last[-1].x_0)  # the last step answers the predicted x_0 itself
    assert torch.equal(drawn, last[-1].x_prev)


@pytest.mark.parametrize("spacing", ["even", "log_snr"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_may_be_fractional_also_where_hardly_any_signal_is_left(name, spacing):
    timesteps = np.linspace(4999, -1, 151).tolist() if spacing == "even" else timestep_grid(LONG, 150, spacing)
    mean, variance = mean_and_variance(name, GAUSSIAN.denoiser(LONG), timesteps)
    assert mean == pytest.approx(0.3, abs=0.01)
    assert math.sqrt(variance) == pytest.approx(0.2, abs=0.04)  # 150 steps of first order leave it narrower


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("clip", ["static", "dynamic"])
def test_clipped_samplers_stay_in_range(name, clip):
    generator = torch.Generator().manual_seed(3)

    def noise():
        return torch.randn(16, 1, 4, 4, generator=generator, dtype=torch.float64)

    wide = Mixture([-0.9, 0.9], 0.4)
    drawn = SAMPLERS[name](wide.denoiser(LINEAR, clip=clip), noise(), timestep_grid(LINEAR, 12), noise=noise)
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize("schedule", [ZERO_SNR, LINEAR, COSINE], ids=["zero_snr", "linear", "cosine"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_five_coarse_steps_do_not_blow_up(name, schedule):
    """Also from where hardly any signal is left, unclipped: a cosine schedule starts at σ = 20,000."""
    prediction = "v" if schedule.zero_terminal_snr else "epsilon"
    x_T = images(torch.linspace(-3, 3, 41, dtype=torch.float64))
    answer = SAMPLERS[name](GAUSSIAN.denoiser(schedule, prediction), x_T, timestep_grid(schedule, 5), noise=no_noise)
    exact = 0.3 + 0.2 * x_T
    assert (answer - exact).abs().max() < 0.6


@pytest.mark.parametrize(
    ("name", "options"), [("ancestral", {}), ("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.2}), ("dpm++sde", {})]
)
def test_noise_is_drawn_once_a_step_except_down_to_the_data(name, options):
    draws = 0

    def noise():
        nonlocal draws
        draws += 1
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    for timesteps, expected in (([900.0, 500.0, 200.0, -1.0], 2), ([900.0, 500.0, 200.0, 10.0], 3)):
        draws = 0
        SAMPLERS[name](GAUSSIAN.denoiser(LINEAR), images(torch.ones(1).double()), timesteps, noise=noise, **options)
        assert draws == expected
