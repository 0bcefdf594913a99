"""Restoration methods against exact posteriors, exact measurements and the papers' schedules."""

import inspect
import math
from itertools import pairwise

import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.restoration import operators as kernels
from ddpm.restoration.methods import METHODS, ddnm, ddrm, dps, find_method, jump_path, renoise, repaint, saturation
from ddpm.restoration.operators import (
    Channels,
    CircularBlur,
    Denoising,
    Dense,
    Inpainting,
    WalshHadamard,
    superresolution,
)
from ddpm.samplers.algorithms import ddim
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.grid import timestep_grid
from experiments.restoration.gaussian import GaussianPrior, as_matrix, deviations, sample_gaussian

SHAPE = (1, 8, 8)
PRIOR = GaussianPrior.smooth(SHAPE)
DENOISER = PRIOR.denoiser()


def stream(count, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, *shape, generator=generator)


def crooked(shape):
    """A denoiser of no Gaussian, which clips."""
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 50, 1e-3, 0.2)), prediction="x_0")
    return Denoiser(lambda x, t, labels: torch.sin(3 * x) + 0.3 * x.roll(1, -1), diffusion)


def operator_of(name, shape):
    known = torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5
    return {
        "inpainting": lambda: Inpainting(shape, known),
        "average": lambda: superresolution(shape, 2),
        "bicubic": lambda: superresolution(shape, 2, "bicubic"),
        "grey": lambda: Channels.grey(shape),
        "hadamard": lambda: WalshHadamard(shape, 10),
        "blur": lambda: CircularBlur(shape, kernels.motion(3, 40)),
        "dense": lambda: Dense(shape, torch.randn(9, math.prod(shape), generator=torch.Generator().manual_seed(2))),
    }[name]()


def samples_and_posterior(name, sigma, method, count=1500, steps=None, **options):
    operator = Denoising(SHAPE) if name == "denoising" else operator_of(name, SHAPE)
    y = operator.H(PRIOR.sample(1, seed=7))
    y = y + 2 * sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    grid = timestep_grid(DENOISER.schedule, steps or METHODS[method].steps)
    found = METHODS[method].run(
        DENOISER, y.expand(count, *y.shape[1:]), operator, 2 * sigma, grid, noise=stream(count), **options
    )
    return found.flatten(1).double(), *PRIOR.posterior(as_matrix(operator), y.flatten().double(), 2 * sigma)


# bias: of the mean, in the posterior's own deviations; spread: total variance over the exact one. The bounds are what
# these approximate methods reach; docs/guides/restoration.md has the whole table.
@pytest.mark.parametrize(
    ("name", "sigma", "method", "options", "bias", "spread"),
    [
        ("denoising", 0.1, "ddrm", {}, 0.4, (0.6, 0.9)),
        ("average", 0.0, "ddnm", {}, 0.15, (0.6, 0.8)),
        ("average", 0.1, "ddrm", {}, 0.25, (0.4, 0.6)),
        ("inpainting", 0.1, "ddnm", {"steps": 100}, 0.3, (0.6, 1.0)),
        ("inpainting", 0.0, "repaint", {"steps": 100, "jump_repeats": 4, "count": 400}, 0.95, (1.5, 3.2)),
        ("average", 0.0, "dps", {"steps": 400, "count": 150}, 0.3, (0.7, 1.4)),
    ],
)
def test_samples_are_near_the_exact_posterior(name, sigma, method, options, bias, spread):
    found = deviations(*samples_and_posterior(name, sigma, method, **options))
    assert found["bias"] < bias
    assert spread[0] < found["spread"] < spread[1]


def test_exact_posterior_is_bayes_rule():
    """The reference itself: importance-weighted prior samples have its mean."""
    operator = superresolution(SHAPE, 4)
    y = operator.H(PRIOR.sample(1, seed=7)).double().flatten()
    mean, covariance = PRIOR.posterior(as_matrix(operator), y, 0.5)
    x = sample_gaussian(PRIOR.mean.flatten(), PRIOR.covariance, 50_000)
    log_weight = -((y - x @ as_matrix(operator).T) ** 2).sum(1) / (2 * 0.5**2)
    weight = torch.softmax(log_weight, 0)
    assert torch.allclose(weight @ x, mean, atol=0.03)
    variance = (weight @ (x - mean) ** 2).sum()
    assert float(variance / covariance.trace()) == pytest.approx(1, abs=0.03)


def test_repaint_jumps_improve_the_posterior():
    few, many = (
        deviations(*samples_and_posterior("inpainting", 0.0, "repaint", 300, steps=50, jump_length=5, jump_repeats=r))
        for r in (1, 6)
    )
    assert many["bias"] < 0.95 * few["bias"]
    assert abs(many["spread"] - 1) < 0.7 * abs(few["spread"] - 1)


@pytest.mark.parametrize("eta", [0.0, 0.85])
def test_ddrm_samples_unseen_pixels_as_ddim(eta):
    """With independent pixels, the measured ones must not affect the unseen ones."""
    shape = (1, 4, 4)
    prior = GaussianPrior(torch.zeros(shape).double(), 0.2 * torch.eye(16).double())
    denoiser = prior.denoiser()
    grid = timestep_grid(denoiser.schedule, 10)
    known = torch.arange(4) < 2
    operator = Inpainting(shape, known.expand(4, 4))
    y = operator.H(prior.sample(3))
    found = ddrm(denoiser, y, operator, 0.1, grid, noise=stream(3, shape), eta=eta)
    noise = stream(3, shape)
    x_t = noise()
    for t, t_prev in pairwise(grid):  # σ of the fresh noise is η√(1-ᾱ_prev), DDRM's own measure of η
        prediction = denoiser(x_t, t)
        signal, sigma = denoiser.schedule.alpha_sigma(t_prev)
        fresh = noise() if t_prev >= 0 else 0.0
        x_t = signal * prediction.x_0 + sigma * ((1 - eta**2) ** 0.5 * prediction.epsilon + eta * fresh)
    assert torch.allclose(found[..., ~known], x_t[..., ~known], atol=1e-5)
    if eta == 0:
        plain = ddim(denoiser, stream(3, shape)(), grid, noise=stream(3, shape))
        assert torch.allclose(found[..., ~known], plain[..., ~known], atol=1e-5)


@pytest.mark.parametrize("method", ["ddrm", "ddnm"])
@pytest.mark.parametrize("name", ["inpainting", "average", "bicubic", "grey", "hadamard", "blur", "dense"])
def test_result_satisfies_an_exact_measurement(name, method):
    shape = (3, 6, 8)
    operator = operator_of(name, shape)
    y = operator.H(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    denoiser = crooked(shape)
    x = METHODS[method].run(denoiser, y, operator, 0.0, timestep_grid(denoiser.schedule, 10), noise=stream(2, shape))
    assert (operator.H(x) - y).abs().max() < 2e-5 * float(operator.singulars.max())


def test_repaint_keeps_known_pixels_exactly():
    shape = (3, 6, 8)
    operator, denoiser = operator_of("inpainting", shape), crooked(shape)
    y = operator.H(torch.rand(2, *shape))
    x = repaint(denoiser, y, operator, 0.0, timestep_grid(denoiser.schedule, 20), noise=stream(2, shape))
    assert torch.equal(operator.H(x), y)
    assert not torch.equal(x, y)


def test_ddrm_ignores_a_very_noisy_measurement():
    """If σ is much larger than the image's deviation, y has no information; η = 1 also forgets y's noise."""
    found = samples_and_posterior("denoising", 100.0, "ddrm", eta=1.0)[0]
    assert torch.allclose(found.mean(0), PRIOR.mean.flatten(), atol=0.08)


def test_ddrm_with_eta_b_zero_ignores_an_accurate_measurement():
    operator = Denoising(SHAPE)
    grid = timestep_grid(DENOISER.schedule, 10)
    one, other = (
        ddrm(DENOISER, torch.full((1, *SHAPE), value), operator, 0.0, grid, noise=stream(1), eta_b=0.0)
        for value in (0.0, 0.1)
    )
    assert (one - other).abs().max() < 0.1  # only the start depends on y
    assert not torch.allclose(one, torch.zeros_like(one), atol=1e-2)


def test_images_of_a_batch_do_not_mix():
    """An image's result is the same alone and in a batch, for every method."""
    operator = operator_of("inpainting", SHAPE)
    y = operator.H(PRIOR.sample(3))
    for name, method in METHODS.items():
        grid = timestep_grid(DENOISER.schedule, 12)
        draws = torch.randn(400, 3, *SHAPE, generator=torch.Generator().manual_seed(1))
        together = method.run(DENOISER, y, operator, 0.0, grid, noise=iter(draws).__next__)
        alone = method.run(DENOISER, y[1:2], operator, 0.0, grid, noise=iter(draws[:, 1:2]).__next__)
        assert torch.allclose(together[1:2], alone, atol=1e-4), name


def test_callback_gets_every_step():
    operator = operator_of("inpainting", SHAPE)
    y = operator.H(PRIOR.sample(1))
    for name, method in METHODS.items():
        seen = []
        grid = timestep_grid(DENOISER.schedule, 12)
        x = method.run(DENOISER, y, operator, 0.0, grid, noise=stream(1), callback=seen.append)
        assert torch.equal(seen[-1].x_prev, x), name
        assert seen[-1].t_prev == -1
        assert not x.requires_grad


@pytest.mark.parametrize(
    ("method", "options"),
    [("repaint", {"jump_length": 2, "jump_repeats": 3}), ("ddnm", {"travel_length": 2, "travel_repeats": 3})],
)
def test_repeated_step_keeps_its_index(method, options):
    seen = []
    operator, grid = operator_of("inpainting", SHAPE), timestep_grid(DENOISER.schedule, 6)
    y = operator.H(PRIOR.sample(1))
    METHODS[method].run(DENOISER, y, operator, 0.0, grid, noise=stream(1), callback=seen.append, **options)
    assert [step.index for step in seen] == [0, 1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4, 5]
    assert all((step.t, step.t_prev) == (grid[step.index], grid[step.index + 1]) for step in seen)


def repaint_listing(steps, length, repeats):
    """The schedule as listed in RePaint's appendix: t counts down to 0, then -1."""
    jumps = dict.fromkeys(range(0, steps - length, length), repeats - 1)
    t, times = steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(("steps", "length", "repeats"), [(250, 10, 10), (20, 5, 3), (12, 1, 2), (7, 10, 4)])
def test_jump_path_equals_repaints_listing(steps, length, repeats):
    assert [steps - 1 - position for position in jump_path(steps, length, repeats)] == repaint_listing(
        steps, length, repeats
    )


def test_renoise_has_the_variance_of_the_forward_process():
    schedule = DENOISER.schedule
    up = renoise(schedule, torch.zeros(1, 1, 200, 200), 100, 400, stream(1, (1, 200, 200)))
    expected = 1 - schedule.alpha_bar(400) / schedule.alpha_bar(100)
    assert float(up.var()) == pytest.approx(expected, rel=0.03)


def test_dps_fits_a_nonlinear_measurement():
    expose = saturation(1.8)
    truth = PRIOR.sample(8).clamp(-1, 1)
    grid = timestep_grid(DENOISER.schedule, 300)
    x = dps(DENOISER, expose(truth), expose, 0.0, grid, noise=stream(8), scale=0.5)
    blind = ddim(DENOISER, stream(8)(), grid, noise=stream(8))
    assert (expose(x) - expose(truth)).square().mean() < 0.1 * (expose(blind) - expose(truth)).square().mean()
    assert (x - truth).square().mean() < 0.3 * (blind - truth).square().mean()


def test_saturation_is_a_clipped_gain():
    pixels = torch.tensor([0.0, 0.25, 0.5, 1.0]) * 2 - 1
    assert torch.allclose(saturation(2.0)(pixels), torch.tensor([0.0, 0.5, 1.0, 1.0]) * 2 - 1)


@pytest.mark.parametrize(
    ("method", "operator", "sigma", "words"),
    [
        ("repaint", Denoising(SHAPE), 0.0, "only inpaints"),
        ("repaint", Inpainting(SHAPE, torch.eye(8)), 0.1, "takes the known pixels as exact"),
        ("ddrm", lambda x: x, 0.0, "singular value"),
        ("ddnm", lambda x: x, 0.0, "linear operator"),
        ("ddrm", Denoising(SHAPE), -0.1, "at least 0"),
        ("ddrm", Denoising(SHAPE), float("nan"), "at least 0"),
    ],
)
def test_method_refuses_impossible_tasks(method, operator, sigma, words):
    with pytest.raises(UserError, match=words):
        METHODS[method].check(operator, sigma)


def test_find_method_names_the_nearest():
    with pytest.raises(UserError, match="did you mean ddrm"):
        find_method("drrm")
    with pytest.raises(UserError, match="known pixels as exact"):
        repaint(DENOISER, torch.zeros(1, *SHAPE), Inpainting(SHAPE, torch.eye(8)), 0.1, [999.0, -1.0], noise=stream(1))


def test_time_travel_needs_positive_lengths():
    with pytest.raises(UserError, match="at least 1"):
        ddnm(DENOISER, torch.zeros(1, *SHAPE), Denoising(SHAPE), 0.0, [9.0, -1.0], noise=stream(1), travel_length=0)


def test_method_options_are_the_functions_own_with_their_defaults():
    for method in METHODS.values():
        parameters = inspect.signature(method.run).parameters
        own = {name: p.default for name, p in parameters.items() if isinstance(p.default, int | float)}
        assert dict(method.options) == own
        assert {name: type(value) for name, value in method.options.items()} == {n: type(v) for n, v in own.items()}


def test_renoise_is_the_closed_form():
    """x_{t_up} = √(ᾱ_up/ᾱ_t) x_t + √(1 - ᾱ_up/ᾱ_t) n."""
    schedule, x = DENOISER.schedule, torch.full((1, 1, 2, 2), 3.0)
    ratio = float(schedule.alphas_cumprod[400] / schedule.alphas_cumprod[100])
    found = renoise(schedule, x, 100, 400, lambda: torch.full_like(x, 5.0))
    assert torch.allclose(found, torch.full_like(x, 3 * ratio**0.5 + 5 * (1 - ratio) ** 0.5), atol=1e-5)
