"""deepinv's σ becomes exactly the timestep of that noise, which is seldom a whole one."""

import math

import pytest
import torch

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.restoration.deepinv import denoiser_as_deepinv
from ddpm.samplers.denoiser import Denoiser

pytest.importorskip("deepinv")


@pytest.mark.parametrize("sigma", [0.03, 0.11, 0.4, 2.0])
def test_the_network_gets_the_timestep_of_this_noise(sigma):
    schedule, seen = NoiseSchedule(make_betas("linear", 12, 0.001, 0.9)), []

    def network(x_t, t, labels):
        seen.append((x_t, t))
        return x_t

    noisy = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    denoiser_as_deepinv(Denoiser(network, GaussianDiffusion(schedule, "x_0"), clip=None))(noisy, sigma)
    ((x_t, t),) = seen
    log_alpha_bar = torch.cat([torch.zeros(1), schedule.alphas_cumprod.log()])  # at t = -1, 0, …, straight in between
    below = int(float(t[0]) + 1)
    part = float(t[0]) + 1 - below
    alpha_bar = math.exp((1 - part) * log_alpha_bar[below] + part * log_alpha_bar[below + 1])
    assert math.sqrt((1 - alpha_bar) / alpha_bar) == pytest.approx(2 * sigma, rel=1e-5)  # images span 2 here, not 1
    torch.testing.assert_close(x_t, math.sqrt(alpha_bar) * (2 * noisy - 1))
