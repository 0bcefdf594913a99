"""Schedules against Diffusers' and against their papers' formulas."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as diffusers_rescale
from hypothesis import given
from hypothesis import strategies as st

from ddpm.common.errors import UserError
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr

NAMES = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps", [10, 1000])
def test_betas_equal_diffusers(name, timesteps):
    theirs = DDPMScheduler(timesteps, 1e-4, 0.02, NAMES[name])
    ours = NoiseSchedule(make_betas(name, timesteps))
    assert ours.betas.dtype == torch.float64
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_equals_diffusers(name):
    betas = make_betas(name, 100)
    ours = rescale_zero_terminal_snr(betas)
    torch.testing.assert_close(ours, diffusers_rescale(betas), rtol=1e-9, atol=1e-12)
    schedule = NoiseSchedule(ours)
    assert schedule.zero_terminal_snr
    assert schedule.alphas_cumprod[-1] == 0
    torch.testing.assert_close(schedule.alphas_cumprod[0], NoiseSchedule(betas).alphas_cumprod[0])
    assert not NoiseSchedule(betas).zero_terminal_snr


def test_the_paper_s_schedule():
    schedule = NoiseSchedule(make_betas("linear", 1000))
    # Ho et al. section 4: L_T = D_KL(q(x_T|x_0) || N(0, I)) ≈ 1e-5 bits a dimension.
    alpha_bar = schedule.alphas_cumprod[-1].item()
    assert 0 < 0.5 * (-alpha_bar - math.log1p(-alpha_bar) + alpha_bar * 0.25) / math.log(2) < 5e-5
    assert schedule.timesteps == len(schedule) == 1000
    assert (make_betas("constant", 7, beta_end=0.3) == 0.3).all()


def test_cosine_follows_equation_17():
    schedule = NoiseSchedule(make_betas("cosine", 50))

    def f(t):
        return math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in range(49):  # the last β is the clipped one
        assert schedule.alphas_cumprod[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-12)
    assert schedule.betas[-1] == 0.999


@given(st.lists(st.floats(1e-5, 0.5), min_size=2, max_size=40))
def test_fractional_time_interpolates_and_inverts(betas):
    schedule = NoiseSchedule(torch.tensor(betas, dtype=torch.float64))
    assert schedule.alpha_bar(-1) == 1
    last = len(betas) - 1
    for t in range(last):
        middle = schedule.alpha_bar(t + 0.5)
        assert middle == pytest.approx(math.sqrt(schedule.alpha_bar(t) * schedule.alpha_bar(t + 1)), rel=1e-9)
        assert schedule.t_from_log_snr(schedule.log_snr(t + 0.5)) == pytest.approx(t + 0.5, abs=1e-4)
    assert schedule.t_from_log_snr(math.inf) == -1
    assert schedule.t_from_log_snr(-1e9) == last
    signal, sigma = schedule.alpha_sigma(last)
    assert signal**2 + sigma**2 == pytest.approx(1)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_fractional_time_lies_between_its_neighbours_however_little_signal_is_left(zero_snr):
    betas = make_betas("linear", 5000)  # ends at ᾱ = 1e-22
    schedule = NoiseSchedule(rescale_zero_terminal_snr(betas) if zero_snr else betas)
    for t in range(4500, 4999):
        assert schedule.alpha_bar(t) > schedule.alpha_bar(t + 0.5) > schedule.alpha_bar(t + 1)
        assert schedule.t_from_log_snr(schedule.log_snr(t + 0.5)) == pytest.approx(t + 0.5, abs=1e-4)
    assert zero_snr or schedule.alpha_bar(4999 - 1e-6) == pytest.approx(schedule.alpha_bar(4999), rel=1e-6, abs=0)


@pytest.mark.parametrize("betas", [[0.1], [0.0, 0.1], [0.1, 1.5], [float("nan"), 0.1], [[0.1, 0.2]]])
def test_betas_that_are_none_are_refused(betas):
    with pytest.raises(UserError, match="betas"):
        NoiseSchedule(torch.tensor(betas))


def test_only_the_last_timestep_may_hold_no_signal():
    for betas in ([0.1, 0.2, 1.0], [1.0, 1.0]):  # the second: regression from noise, one step
        assert NoiseSchedule(torch.tensor(betas)).zero_terminal_snr
    with pytest.raises(UserError, match="from timestep 1 of 3 on"):
        NoiseSchedule(torch.tensor([0.1, 1.0, 0.2]))
    with pytest.raises(UserError, match="smaller betas"):  # 0.1^324 is 0 in float64
        NoiseSchedule(make_betas("constant", 1000, beta_end=0.9))


def test_unknown_names_and_times_are_refused():
    with pytest.raises(UserError, match=r"linaer.*linear"):
        make_betas("linaer", 10)
    with pytest.raises(UserError, match="outside"):
        NoiseSchedule(make_betas("linear", 10)).alpha_bar(10)
