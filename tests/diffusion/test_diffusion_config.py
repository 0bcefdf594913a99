"""The process section: defaults are the paper's, contradictions are refused in words."""

import pytest
import torch
from pydantic import ValidationError

from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.timestep_samplers import LossAwareSampler


def test_defaults_are_the_paper_s():
    diffusion = DiffusionConfig().build()
    assert diffusion.prediction == "epsilon"
    assert diffusion.variance == "fixed_large"
    torch.testing.assert_close(diffusion.schedule.betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_custom_betas_set_the_timesteps():
    config = DiffusionConfig(betas=[0.1, 0.2, 0.4])
    assert config.timesteps == 3
    assert config.build_schedule().betas.tolist() == [0.1, 0.2, 0.4]
    assert DiffusionConfig(**config.model_dump()) == config


def test_zero_terminal_snr_and_draw():
    config = DiffusionConfig(timesteps=20, zero_terminal_snr=True, prediction="v", timestep_sampler="loss_aware")
    assert config.build().schedule.zero_terminal_snr
    draw = config.build_timestep_sampler()
    assert isinstance(draw, LossAwareSampler)
    assert draw.timesteps == 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zero_terminal_snr": True}, "use prediction v or x_0"),
        ({"loss": "hybrid"}, "needs variance learned_range"),
        ({"variance": "learned_range"}, "use loss hybrid or vlb"),
        ({"loss": "huber", "weighting": "p2"}, "use loss simple or hybrid"),
        ({"loss": "vlb", "weighting": "snr"}, "use loss simple or hybrid"),
        ({"betas": [0.1, 0.2], "timesteps": 3}, "2 values but timesteps is 3"),
        ({"betas": [0.1, 1.2]}, "less than or equal to 1"),
        ({"schedule": "linaer"}, "linear"),
        ({"shedule": "linear"}, "shedule"),
        ({"timesteps": 1}, "greater than or equal to 2"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        DiffusionConfig(**fields)
