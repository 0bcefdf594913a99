"""Schedules, predictions and variances in Diffusers' words, against its own schedulers."""

import inspect
import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.interop.diffusers_config import SchedulerConfig, UNet2DConfig, to_process, to_scheduler

PROCESSES = {
    "linear": {},
    "other_ends": {"beta_start": 0.1 / 3, "beta_end": 0.5},
    "quadratic": {"schedule": "quadratic", "beta_start": 1e-5},
    "cosine": {"schedule": "cosine"},
    "sigmoid": {"schedule": "sigmoid"},
    "constant": {"schedule": "constant"},
    "custom": {"betas": [0.1, 0.3, 0.2, 0.9]},
    "zero_snr": {"zero_terminal_snr": True, "prediction": "v"},
    "zero_snr_cosine": {"schedule": "cosine", "zero_terminal_snr": True, "prediction": "x_0"},
    "zero_snr_other_ends": {"beta_end": 0.3, "zero_terminal_snr": True, "prediction": "v"},
    "fixed_small": {"variance": "fixed_small", "prediction": "x_0"},
    "learned_range": {"variance": "learned_range", "loss": "hybrid"},
}


@pytest.mark.parametrize("name", PROCESSES)
def test_round_trip_is_exact_and_diffusers_agrees(name):
    fields = {**({} if name == "custom" else {"timesteps": 40}), **PROCESSES[name]}
    diffusion = DiffusionConfig(**fields).build()
    written = json.loads(json.dumps(to_scheduler(diffusion)))
    back = to_process(written, diffusion.learns_variance, "here")
    assert torch.equal(back.schedule.betas, diffusion.schedule.betas)
    assert (back.prediction, back.variance) == (diffusion.prediction, diffusion.variance)
    theirs = DDPMScheduler.from_config(written)
    assert torch.allclose(theirs.alphas_cumprod.double(), diffusion.schedule.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert torch.allclose(DDIMScheduler.from_config(written).alphas_cumprod, theirs.alphas_cumprod)
    theirs.set_timesteps(len(theirs.betas))
    assert theirs.timesteps.tolist() == list(range(len(theirs.betas) - 1, -1, -1))


def test_named_where_diffusers_has_a_name():
    for name, word in (("linear", "linear"), ("quadratic", "scaled_linear"), ("cosine", "squaredcos_cap_v2")):
        for zero in (False, True):
            config = DiffusionConfig(schedule=name, zero_terminal_snr=zero, prediction="v")
            written = to_scheduler(config.build())
            assert written["trained_betas"] is None
            assert (written["beta_schedule"], written["rescale_betas_zero_snr"]) == (word, zero)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("zero", [False, True])
def test_theirs_is_read_as_they_mean_it(name, zero):
    theirs = DDPMScheduler(60, beta_schedule=name, rescale_betas_zero_snr=zero, prediction_type="v_prediction")
    diffusion = to_process(dict(theirs.config), False, "here")
    assert torch.allclose(diffusion.schedule.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 2.0])
def test_images_of_another_range_are_refused(limit):
    """Their scheduler clips x_0 to the range, so what it draws is not in [-1, 1]."""
    theirs = DDPMScheduler(60, clip_sample_range=limit)
    theirs.set_timesteps(60)
    drawn = theirs.step(torch.zeros(1, 1, 2, 2), 0, torch.full((1, 1, 2, 2), 9.0)).pred_original_sample
    assert drawn.amax() <= limit
    with pytest.raises(UserError, match=f"clip_sample_range is {limit:g}"):
        to_process(dict(theirs.config), False, "here")


def test_a_range_that_nothing_is_clipped_to_is_no_obstacle():
    to_process(dict(DDPMScheduler(60, clip_sample=False, clip_sample_range=2.0).config), False, "here")


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_variance_that_a_scheduler_does_not_name(scheduler):
    config = json.loads(scheduler().to_json_string())
    assert to_process(config, False, "here").variance == "fixed_small"
    assert to_process(config, True, "here").variance == "learned_range"


@pytest.mark.parametrize(("ours", "theirs"), [(SchedulerConfig, DDPMScheduler), (UNet2DConfig, UNet2DModel)])
def test_what_a_file_does_not_say_is_diffusers_default(ours, theirs):
    """Older files lack the fields that came later; their library fills them in, and so must this."""
    parameters = inspect.signature(theirs).parameters
    known = [name for name, field in ours.model_fields.items() if name in parameters and not field.is_required()]
    assert len(known) > 9
    for name in known:
        default = parameters[name].default
        assert ours.model_fields[name].default == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("options", [{"beta_start": 0.01, "beta_end": 0.3}, {"trained_betas": [0.1, 0.2, 0.4, 0.8]}])
@pytest.mark.parametrize("zero", [False, True])
def test_betas_of_any_kind_are_read_as_they_mean_them(options, zero):
    theirs = DDPMScheduler(40, rescale_betas_zero_snr=zero, prediction_type="v_prediction", **options)
    diffusion = to_process(dict(theirs.config), False, "here")
    assert torch.allclose(diffusion.schedule.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


def test_a_scheduler_is_written_for_few_steps_from_pure_noise():
    """So that a pipeline with fewer steps than T starts at T - 1."""
    theirs = DDPMScheduler.from_config(to_scheduler(DiffusionConfig(timesteps=40).build()))
    theirs.set_timesteps(5)
    assert theirs.timesteps.tolist() == [39, 31, 23, 15, 7]
    assert (theirs.config.clip_sample, theirs.config.clip_sample_range) == (True, 1.0)
