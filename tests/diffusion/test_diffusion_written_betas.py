"""Betas that a configuration writes out go through the same options as a named schedule."""

import numpy as np
import pytest

from ddpm.diffusion.config import DiffusionConfig

BETAS = [0.01, 0.3, 0.05, 0.2, 0.6]


@pytest.mark.parametrize("zero", [False, True])
def test_written_betas_are_rescaled_if_asked(zero):
    config = DiffusionConfig(betas=BETAS, zero_terminal_snr=zero, prediction="v")
    root = np.sqrt(np.cumprod(1 - np.array(BETAS)))
    if zero:  # Lin et al. 2024, algorithm 1
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(config.build().schedule.alphas_cumprod, root**2, atol=1e-15)
    assert config.timesteps == len(BETAS)


def test_a_written_list_gives_what_the_name_gives():
    named = DiffusionConfig(schedule="quadratic", timesteps=7, zero_terminal_snr=True, prediction="x_0")
    plain = DiffusionConfig(schedule="quadratic", timesteps=7).build_schedule().betas.tolist()
    written = DiffusionConfig(betas=plain, zero_terminal_snr=True, prediction="x_0")
    assert written.build_schedule().betas.tolist() == named.build_schedule().betas.tolist()
