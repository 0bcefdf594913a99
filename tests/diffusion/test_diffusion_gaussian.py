"""q(x_t|x_0), its posterior and the conversions, against Bayes' rule, Diffusers and each other."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr

T = 60
SCHEDULE = NoiseSchedule(make_betas("linear", T, 1e-3, 0.2))


def normal_pdf(x, mean, variance):
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize(("t", "t_prev"), [(1, 0), (30, 29), (59, 58), (50, 10), (40.5, 3.25)])
def test_posterior_is_bayes_rule(t, t_prev):
    """q(x_s|x_t, x_0) ∝ q(x_t|x_s) q(x_s|x_0), normalised numerically on a grid."""
    x_0, x_t = torch.tensor([0.4, -0.7], dtype=torch.float64)
    alpha_bar, alpha_bar_prev = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t_prev)
    step = alpha_bar / alpha_bar_prev
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    density = normal_pdf(x_t, step**0.5 * x, 1 - step)
    density = density * normal_pdf(x, alpha_bar_prev**0.5 * x_0, 1 - alpha_bar_prev)
    density = density / density.sum()
    mean = (density * x).sum()
    variance = (density * (x - mean) ** 2).sum()
    posterior = GaussianDiffusion(SCHEDULE).posterior(t, t_prev)
    assert posterior.mean(x_0, x_t).item() == pytest.approx(mean.item(), abs=1e-9)
    assert posterior.variance == pytest.approx(variance.item(), rel=1e-6)
    assert posterior.beta == pytest.approx(1 - step)


def test_posterior_at_the_data_is_the_data():
    posterior = GaussianDiffusion(SCHEDULE).posterior(0, -1)
    x_0 = torch.randn(3)
    assert posterior.variance == 0
    torch.testing.assert_close(posterior.mean(x_0, torch.randn(3)), x_0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_reverse_variance_equals_diffusers(variance):
    scheduler = DDPMScheduler(T, 1e-3, 0.2, "linear", variance_type=variance)
    ours = GaussianDiffusion(SCHEDULE, variance=variance).log_variance.exp()
    for t in range(1, T):
        assert ours[t].item() == pytest.approx(float(scheduler._get_variance(t, variance_type=variance)), rel=1e-4)
    assert ours[0].item() == pytest.approx(SCHEDULE.posterior_variance[1].item())


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_forward_target_and_mean_equal_diffusers(prediction):
    name = {"epsilon": "epsilon", "x_0": "sample", "v": "v_prediction"}[prediction]
    scheduler = DDPMScheduler(T, 1e-3, 0.2, "linear", prediction_type=name, clip_sample=False)
    diffusion = GaussianDiffusion(SCHEDULE, prediction)
    x_0, noise, output = torch.randn(3, 4, 2, 5, 5).unbind(0)
    t = torch.tensor([0, 1, 33, T - 1])
    x_t = diffusion.q_sample(x_0, t, noise)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, noise, t), rtol=1e-4, atol=1e-5)
    if prediction == "v":
        velocity = scheduler.get_velocity(x_0, noise, t)
        torch.testing.assert_close(diffusion.target(x_0, t, noise), velocity, rtol=1e-4, atol=1e-5)
    for i, step in enumerate(t.tolist()):
        if step == 0:
            continue
        theirs = scheduler.step(output[i], step, x_t[i], generator=torch.Generator().manual_seed(1))
        predicted = diffusion.predicted_x_0(output[i : i + 1], x_t[i : i + 1], step)
        torch.testing.assert_close(predicted[0], theirs.pred_original_sample, rtol=1e-4, atol=1e-4)
        z = torch.randn(x_t[i].shape, generator=torch.Generator().manual_seed(1))
        ours = diffusion.posterior(step, step - 1).mean(predicted, x_t[i : i + 1])[0]
        ours = ours + math.exp(0.5 * diffusion.log_variance[step]) * z
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-4, atol=1e-4)


@given(st.sampled_from(["epsilon", "x_0", "v"]), st.integers(0, T - 1), st.integers(0, 2**31))
def test_conversions_round_trip(prediction, t, seed):
    """The target leads back to x_0, and x_0 to ε, for one t and for a tensor of them alike."""
    diffusion = GaussianDiffusion(SCHEDULE, prediction)
    generator = torch.Generator().manual_seed(seed)
    x_0, noise = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    signal, sigma = SCHEDULE.alpha_sigma(t)
    for time in (t, torch.full((3,), t)):
        x_t = diffusion.q_sample(x_0, time, noise)
        torch.testing.assert_close(x_t, signal * x_0 + sigma * noise)
        predicted = diffusion.predicted_x_0(diffusion.target(x_0, time, noise), x_t, time)
        torch.testing.assert_close(predicted, x_0)
        torch.testing.assert_close(diffusion.epsilon_from_x_0(predicted, x_t, time), noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_scale_survives_low_precision(dtype):
    """1-ᾱ taken from a bfloat16 ᾱ would be zero at the first steps of the paper's schedule."""
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000)))
    t = torch.arange(10)
    sigma = diffusion.q_sample(torch.zeros(10, 1, 1, 1, dtype=dtype), t, torch.ones(10, 1, 1, 1, dtype=dtype))
    assert sigma.dtype == dtype
    exact = (1 - diffusion.schedule.alphas_cumprod[:10]).sqrt()
    torch.testing.assert_close(sigma.flatten().double(), exact, rtol=4e-3, atol=0)


def test_epsilon_is_refused_where_no_signal_is_left():
    schedule = NoiseSchedule(rescale_zero_terminal_snr(SCHEDULE.betas))
    with pytest.raises(UserError, match="zero-terminal-SNR"):
        GaussianDiffusion(schedule, "epsilon")
    diffusion = GaussianDiffusion(schedule, "v")
    x_0, noise = torch.randn(2, 2, 1, 3, 3).unbind(0)
    torch.testing.assert_close(diffusion.q_sample(x_0, T - 1, noise), noise)
    torch.testing.assert_close(diffusion.target(x_0, T - 1, noise), -x_0)
