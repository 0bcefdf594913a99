"""Schedules, losses and the bound against the papers' formulas in float64, written with Python's numbers.

Every image has its own timestep and no two numbers are alike: a sign, a neighbour's index, a swapped argument show.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import ddpm.diffusion
import ddpm.networks
from ddpm.diffusion import (
    DiffusionConfig,
    DiffusionLoss,
    GaussianDiffusion,
    NoiseSchedule,
    VariationalBound,
    make_betas,
)
from ddpm.diffusion.gaussian import TimestepTable
from ddpm.diffusion.schedule import rescale_zero_terminal_snr
from ddpm.diffusion.timestep_samplers import LossAwareSampler, UniformSampler

T = 24
FIRST, LAST = 0.002, 0.31


def plain_betas(name: str, zero: bool = False) -> list[float]:
    """Ho et al. 2020; Nichol & Dhariwal 2021, eq. 17; Lin et al. 2024, algorithm 1."""

    def f(t: int) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = {
        "linear": [FIRST + (LAST - FIRST) * t / (T - 1) for t in range(T)],
        "quadratic": [(FIRST**0.5 + (LAST**0.5 - FIRST**0.5) * t / (T - 1)) ** 2 for t in range(T)],
        "constant": [LAST] * T,
        "sigmoid": [FIRST + (LAST - FIRST) / (1 + math.exp(6 - 12 * t / (T - 1))) for t in range(T)],
        "cosine": [min(1 - f(t + 1) / f(t), 0.999) for t in range(T)],
    }[name]
    if zero:
        root = [math.sqrt(math.prod(1 - beta for beta in betas[: t + 1])) for t in range(T)]
        root = [(r - root[-1]) * root[0] / (root[0] - root[-1]) for r in root]
        betas = [1 - root[0] ** 2] + [1 - (root[t] / root[t - 1]) ** 2 for t in range(1, T)]
    return betas


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["linear", "quadratic", "constant", "sigmoid", "cosine"])
def test_schedule_is_its_formula(name, zero):
    betas = plain_betas(name, zero)
    config = DiffusionConfig(
        schedule=name, timesteps=T, beta_start=FIRST, beta_end=LAST, zero_terminal_snr=zero, prediction="v"
    )
    schedule = config.build_schedule()
    close = {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(make_betas(name, T, FIRST, LAST).tolist(), plain_betas(name), rtol=1e-12, atol=0)
    np.testing.assert_allclose(schedule.betas, betas, **close)
    kept = [math.prod(1 - beta for beta in betas[: t + 1]) for t in range(T)]
    before = [1.0, *kept[:-1]]
    np.testing.assert_allclose(schedule.alphas_cumprod, kept, **close)
    np.testing.assert_allclose(schedule.alphas_cumprod_prev, before, **close)
    small = [beta * (1 - b) / (1 - k) for beta, b, k in zip(betas, before, kept, strict=True)]
    np.testing.assert_allclose(schedule.posterior_variance, small, **close)
    np.testing.assert_allclose(schedule.posterior_log_variance.exp(), [small[1], *small[1:]], **close)
    diffusion = GaussianDiffusion(schedule, "v", "fixed_large")
    np.testing.assert_allclose(diffusion.log_variance.exp(), [small[1], *betas[1:]], **close)
    np.testing.assert_allclose(GaussianDiffusion(schedule, "v").log_variance.exp(), [small[1], *small[1:]], **close)
    for t in (0, 1, 7, T - 2):
        signal, sigma = schedule.alpha_sigma(t)
        assert (signal, sigma) == pytest.approx((math.sqrt(kept[t]), math.sqrt(1 - kept[t])), rel=1e-12)
        assert schedule.log_snr(t) == pytest.approx(math.log(kept[t] / (1 - kept[t])), rel=1e-10)
        between = math.exp(0.7 * math.log(kept[t]) + 0.3 * math.log(before[t]))
        assert schedule.alpha_bar(t - 0.3) == pytest.approx(between, rel=1e-12)
        log_snr = math.log(between / (1 - between))
        assert schedule.t_from_log_snr(log_snr) == pytest.approx(t - 0.3, abs=1e-6)
    assert schedule.zero_terminal_snr == zero
    assert (schedule.log_snr(-1), schedule.alpha_bar(-1)) == (math.inf, 1)
    assert (schedule.log_snr(T - 1) == -math.inf) == zero


@pytest.mark.parametrize(("betas", "floor"), [([0.5, 0.999], 1e-20), ([1 - 1e-13, 1 - 1e-13], 1e-26 / math.e)])
def test_where_no_signal_is_left_log_alpha_bar_has_a_floor(betas, floor):
    """10^-20, or e-fold less than the last that is left."""
    schedule = NoiseSchedule(torch.tensor([*betas, 1.0], dtype=torch.float64))
    left = (1 - betas[0]) * (1 - betas[1])
    expected = 0.25 * math.log(left) + 0.75 * math.log(floor)
    assert math.log(schedule.alpha_bar(1.75)) == pytest.approx(expected, abs=2e-3)
    assert schedule.alpha_bar(2) == 0


def test_alpha_bar_outside_the_schedule_is_refused():
    schedule = NoiseSchedule(torch.tensor(plain_betas("linear")))
    assert schedule.alpha_bar(T - 1) > 0
    for t in (-1.01, T - 0.99, float("nan")):
        with pytest.raises(ddpm.common.errors.UserError, match="outside"):
            schedule.alpha_bar(t)


def test_a_table_is_rounded_once_per_format():
    columns = torch.rand(2, 9, dtype=torch.float64).unbind()
    table, t = TimestepTable(*columns), torch.tensor([3, 0, 8])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float32, torch.float16):
        for shape in ((3, 2, 4, 5), (3, 7)):
            found = table(t, torch.empty(shape, dtype=dtype))
            assert len(found) == 2
            for values, column in zip(found, columns, strict=True):
                assert values.shape == (3, *[1] * (len(shape) - 1))
                assert torch.equal(values.flatten(), column[t].to(dtype))


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_timestep_minus_one_is_the_data(prediction):
    """√ᾱ = 1 and √(1-ᾱ) = 0, as one number and in a tensor beside others."""
    diffusion = GaussianDiffusion(NoiseSchedule(torch.tensor(plain_betas("linear"))), prediction)
    x_0, noise = torch.randn(2, 3, 1, 2, 4, dtype=torch.float64).unbind()
    t = torch.tensor([4, -1, T - 1])
    x_t = diffusion.q_sample(x_0, t, noise)
    assert torch.equal(x_t[1], x_0[1])
    for i, each in enumerate(t.tolist()):
        torch.testing.assert_close(diffusion.q_sample(x_0[i], each, noise[i]), x_t[i])
        torch.testing.assert_close(diffusion.target(x_0, t, noise)[i], diffusion.target(x_0[i], each, noise[i]))
    torch.testing.assert_close(diffusion.predicted_x_0(diffusion.target(x_0, t, noise), x_t, t), x_0)


# --- the losses


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0 in levels of 255, noise, raw outputs of two parts, and timesteps with both ends, each once or twice."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.tensor([0, 1, 5, 5, 14, T - 2, T - 1])
    x_0 = torch.randint(0, 256, (len(t), 2, 3, 5), generator=generator).double() / 127.5 - 1
    noise, mean, raw = torch.randn(3, *x_0.shape, generator=generator, dtype=torch.float64).unbind()
    return x_0, noise, torch.cat([mean, raw], 1), t


def plain_term(kept, betas, t: int, x_0: Tensor, x_t: Tensor, predicted: Tensor, log_variance) -> Tensor:
    """KL(q(x_{t-1}|x_t, x_0) || p) or -log p(x_0|x_1) per number, in nats; both means from eq. 7."""
    if t == 0:
        std = (0.5 * torch.as_tensor(log_variance)).exp()

        def cdf(y: Tensor) -> Tensor:
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

        above, below = cdf((x_0 - predicted + 1 / 255) / std), cdf((x_0 - predicted - 1 / 255) / std)
        below, above = below.where(x_0 > -0.999, torch.zeros(())), above.where(x_0 < 0.999, torch.ones(()))
        return -(above - below).clamp(min=1e-12).log()
    beta, now, before = betas[t], kept[t], kept[t - 1]
    variance = beta * (1 - before) / (1 - now)
    weights = math.sqrt(before) * beta / (1 - now), math.sqrt(1 - beta) * (1 - before) / (1 - now)
    true, guessed = (weights[0] * image + weights[1] * x_t for image in (x_0, predicted))
    ratio = (math.log(variance) - torch.as_tensor(log_variance)).exp()
    return 0.5 * (ratio - 1 - ratio.log() + (true - guessed) ** 2 / torch.as_tensor(log_variance).exp())


def plain_loss(loss, weighting, prediction, variance, betas, output, x_0, t, noise, options) -> float:
    """The loss of one image, from eq. 5 and 14 and the definitions of the weightings."""
    kept = np.cumprod([1 - beta for beta in betas])
    signal, sigma = math.sqrt(kept[t]), math.sqrt(1 - kept[t])
    x_t = signal * x_0 + sigma * noise
    mean, raw = output[:2], output[2:]
    target = {"epsilon": noise, "x_0": x_0, "v": signal * noise - sigma * x_0}[prediction]
    predicted = {
        "epsilon": lambda: (x_t - sigma * mean) / signal,
        "x_0": lambda: mean,
        "v": lambda: signal * x_t - sigma * mean,
    }[prediction]()
    error = mean - target
    snr = kept[t] / (1 - kept[t])
    on_x_0 = {  # weights of |x_0 - x̂_0|²
        "none": None,
        "snr": snr,
        "min_snr": min(snr, options["min_snr_gamma"]),
        "p2": snr / (options["p2_k"] + snr) ** options["p2_gamma"],
    }[weighting]
    of_x_0 = {"epsilon": snr, "x_0": 1.0, "v": snr + 1}[prediction]  # |error|² = of_x_0 · |x_0 - x̂_0|²
    weight = 1.0 if on_x_0 is None else on_x_0 / of_x_0
    if loss == "l1":
        return float(error.abs().mean())
    if loss == "huber":
        return float(torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).mean())
    before = kept[max(t - 1, 0)]
    small = math.log(betas[max(t, 1)] * (1 - kept[max(t, 1) - 1]) / (1 - kept[max(t, 1)]))
    if variance == "learned_range":
        log_variance = small + (raw + 1) / 2 * (math.log(betas[t]) - small)
    else:
        log_variance = torch.tensor(small if variance == "fixed_small" or t == 0 else math.log(betas[t])).double()
    assert before > 0
    term = plain_term(kept, betas, t, x_0, x_t, predicted, log_variance).mean() / math.log(2)
    if loss == "vlb":
        return float(T * term)
    simple = float(weight * (error**2).mean())
    return simple + (float(0.001 * T * term) if loss == "hybrid" else 0.0)


LOSSES = [
    *[
        ("simple", weighting, variance)
        for weighting in ("none", "snr", "min_snr", "p2")
        for variance in ("fixed_small",)
    ],
    ("l1", "none", "fixed_small"),
    ("huber", "none", "fixed_large"),
    *[("vlb", "none", variance) for variance in ("fixed_small", "fixed_large", "learned_range")],
    *[("hybrid", weighting, "learned_range") for weighting in ("none", "snr", "min_snr", "p2")],
]


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
@pytest.mark.parametrize(("loss", "weighting", "variance"), LOSSES)
def test_loss_is_its_formula(loss, weighting, variance, prediction):
    """By the configuration, as training builds it; a wrong field, or one that is not passed on, shows."""
    options = {"min_snr_gamma": 0.7, "p2_gamma": 0.6, "p2_k": 1.9}
    betas = plain_betas("linear")
    config = DiffusionConfig(
        timesteps=T,
        beta_start=FIRST,
        beta_end=LAST,
        prediction=prediction,
        variance=variance,
        loss=loss,
        weighting=weighting,
        **options,
    )
    x_0, noise, output, t = batch(3)
    if variance != "learned_range":
        output = output[:, :2]
    kept = torch.tensor(np.cumprod([1 - beta for beta in betas]))[t].reshape(-1, 1, 1, 1)
    x_t = kept.sqrt() * x_0 + (1 - kept).sqrt() * noise
    for order in (list(range(len(t))), [4, 6, 0, 2, 1, 5, 3], [2]):
        given = (part[order].float() for part in (output, x_0, x_t))
        found = config.build_loss()(*given, t[order], noise[order].float())
        assert found.dtype == torch.float32
        expected = [
            plain_loss(loss, weighting, prediction, variance, betas, output[i], x_0[i], int(t[i]), noise[i], options)
            for i in order
        ]
        assert found.tolist() == pytest.approx(expected, rel=2e-4)


def test_prior_is_the_papers():
    """L_T = KL(N(√ᾱ x_0, 1-ᾱ) || N(0, 1)) of a schedule that is far from noise."""
    betas = [0.01, 0.05, 0.2]
    bound = VariationalBound(GaussianDiffusion(NoiseSchedule(torch.tensor(betas, dtype=torch.float64))))
    x_0 = torch.linspace(-1, 0.8, 24, dtype=torch.float64).reshape(3, 1, 2, 4)
    kept = 0.99 * 0.95 * 0.8
    kl = 0.5 * ((1 - kept) + kept * x_0**2 - 1 - math.log(1 - kept))
    torch.testing.assert_close(bound.prior(x_0), kl.mean((1, 2, 3)) / math.log(2))


def test_training_from_a_schedule_without_signal_is_finite_and_unweighted_at_its_end():
    betas = rescale_zero_terminal_snr(make_betas("linear", T, FIRST, LAST))
    for prediction in ("x_0", "v"):
        diffusion = GaussianDiffusion(NoiseSchedule(betas), prediction)
        x_0, noise, output, _ = batch(4)
        t = torch.full((len(x_0),), T - 1)
        loss = DiffusionLoss(diffusion, "simple", "min_snr")(output[:, :2], x_0, noise, t, noise)
        target = x_0 if prediction == "x_0" else -x_0
        torch.testing.assert_close(loss, (output[:, :2] - target).square().mean((1, 2, 3)).float())


# --- timesteps


def test_uniform_covers_both_ends_and_is_a_hash_of_its_words():
    """u = the first 63 bits of the hash of "seed/timestep/step/position", over 2^63."""
    import hashlib

    t, weight = UniformSampler(7).draw(3, 11, torch.tensor([5, 2, 900]), 1000)
    for found, position in zip(t.tolist(), (5, 2, 900), strict=True):
        digest = hashlib.blake2b(f"3/timestep/11/{position}".encode(), digest_size=8).digest()
        assert found == int((int.from_bytes(digest, "little") >> 1) / 2**63 * 7)
    assert weight.tolist() == [1.0, 1.0, 1.0]
    many = UniformSampler(5).draw(0, 0, torch.arange(400), 400)[0]
    assert set(many.tolist()) == {0, 1, 2, 3, 4}


def test_loss_aware_draws_by_the_inverse_of_its_distribution():
    sampler = LossAwareSampler(4)
    for k in range(13):  # three more than are kept
        sampler.update(torch.arange(4), torch.tensor([1.0 + k, 2.0, 0.5 * k, 7.0]))
    kept = [[1.0 + k for k in range(3, 13)], [2.0] * 10, [0.5 * k for k in range(3, 13)], [7.0] * 10]
    root = [math.sqrt(sum(loss**2 for loss in losses) / 10) for losses in kept]
    p = [0.999 * value / sum(root) + 0.001 / 4 for value in root]
    assert sampler.probabilities().tolist() == pytest.approx(p, rel=1e-12)
    t, weight = sampler.draw(2, 9, torch.arange(300), 300)
    u = [(UniformSampler(10**9).draw(2, 9, torch.tensor([i]), 300)[0].item() + 0.5) / 1e9 for i in range(300)]
    expected = [next(i for i in range(4) if value < sum(p[: i + 1])) for value in u]
    assert t.tolist() == expected
    assert weight.tolist() == pytest.approx([1 / (4 * p[i]) for i in expected], rel=1e-6)
    assert sampler.adaptive
    assert not UniformSampler(4).adaptive


@pytest.mark.parametrize("package", [ddpm.diffusion, ddpm.networks])
def test_every_public_name_is_there(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__class__ is not type(package)
