"""50-step trajectories against Diffusers' schedulers, on their own timesteps, at the same noise, step by step."""

import pytest
import torch
from torch import Tensor

from ddpm.common.randomness import ImageNoise, image_generator
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
from ddpm.samplers import SAMPLERS, Denoiser

diffusers = pytest.importorskip("diffusers")

SHAPE, IMAGES, STEPS = (3, 8, 8), 2, 50
DPM_CLIP = {"thresholding": True, "sample_max_value": 1.0}
DPM_NO_CLIP = {"thresholding": False}


class RandomNetwork:
    """A random, non-linear, time-dependent ε̂ (or v̂), far enough from the truth that clipping matters."""

    def __init__(self, out_channels: int):
        generator = torch.Generator().manual_seed(7)
        self.first = torch.randn(8, 3, 3, 3, generator=generator) / 4
        self.last = torch.randn(out_channels, 8, 3, 3, generator=generator) / 12
        self.phase = torch.randn(8, 1, 1, generator=generator)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        hidden = torch.sin(torch.conv2d(x_t, self.first, padding=1) + self.phase + t[0] / 300)
        answer = torch.conv2d(hidden, self.last, padding=1)
        answer[:, :3] += 0.9 * x_t
        return answer


def theirs(scheduler, network, step_options: dict, seed: int) -> list[Tensor]:
    """Diffusers' loop, as its pipelines write it."""
    generators = [image_generator(seed, index) for index in range(IMAGES)]
    x = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators])
    scheduler.set_timesteps(STEPS)
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.float().reshape(1)), t, x, **step_options(generators)).prev_sample
        states.append(x)
    return states


def ours(name: str, diffusion, network, timesteps, clip, seed: int, end: float = -1.0, **options) -> list[Tensor]:
    states = []
    noise = ImageNoise.of_seed(seed, range(IMAGES), SHAPE)
    SAMPLERS[name](
        Denoiser(network, diffusion, clip=clip),
        noise(),
        [*map(float, timesteps), end],
        noise=noise,
        callback=lambda step: states.append(step.x_prev),
        **options,
    )
    return states


def assert_same_trajectory(mine: list[Tensor], reference: list[Tensor], tolerance: float = 1e-4):
    assert len(mine) == len(reference) == STEPS
    for index, (a, b) in enumerate(zip(mine, reference, strict=True)):
        scale = max(1.0, b.abs().max().item())
        assert (a - b).abs().max() <= tolerance * scale, f"step {index}: off by {(a - b).abs().max():.2e}"
    assert mine[-1].std() > 0.1  # a trajectory that died would agree too


def with_generator(generators):
    return {"generator": generators}


def without_generator(generators):
    return {}


@pytest.mark.parametrize("clip", ["static", None])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("their_variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_ancestral(their_variance, spacing, clip):
    scheduler = diffusers.DDPMScheduler(
        variance_type=their_variance, clip_sample=clip is not None, timestep_spacing=spacing
    )
    variance = their_variance.removesuffix("_log")
    network = RandomNetwork(6 if variance == "learned_range" else 3)
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000)), "epsilon", variance)
    reference = theirs(scheduler, network, with_generator, seed=3)
    assert_same_trajectory(ours("ancestral", diffusion, network, scheduler.timesteps, clip, seed=3), reference)


@pytest.mark.parametrize("clip", ["static", "dynamic", None])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(eta, clip):
    scheduler = diffusers.DDIMScheduler(
        clip_sample=clip == "static", thresholding=clip == "dynamic", sample_max_value=1e6
    )
    diffusion, network = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000))), RandomNetwork(3)
    reference = theirs(
        scheduler, network, lambda g: {"generator": g, "eta": eta, "use_clipped_model_output": True}, seed=4
    )
    assert_same_trajectory(ours("ddim", diffusion, network, scheduler.timesteps, clip, seed=4, eta=eta), reference)


@pytest.mark.parametrize("clip", ["static", None])
@pytest.mark.parametrize(("final", "end"), [("zero", -1.0), ("sigma_min", 0.0)])
@pytest.mark.parametrize(
    ("name", "algorithm", "step_options"),
    [("dpm++", "dpmsolver++", without_generator), ("dpm++sde", "sde-dpmsolver++", with_generator)],
)
def test_dpm_solver(name, algorithm, step_options, final, end, clip):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm, final_sigmas_type=final, **(DPM_CLIP if clip else DPM_NO_CLIP)
    )
    diffusion, network = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000))), RandomNetwork(3)
    reference = theirs(scheduler, network, step_options, seed=5)
    assert_same_trajectory(ours(name, diffusion, network, scheduler.timesteps, clip, seed=5, end=end), reference)


@pytest.mark.parametrize("clip", ["static", None])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize(("final", "end"), [("zero", -1.0), ("sigma_min", 0.0)])
def test_unipc(final, end, spacing, clip):
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_type="bh2",
        timestep_spacing=spacing,
        final_sigmas_type=final,
        lower_order_final=final == "zero",
        **(DPM_CLIP if clip else DPM_NO_CLIP),
    )
    diffusion, network = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000))), RandomNetwork(3)
    reference = theirs(scheduler, network, without_generator, seed=6)
    mine = ours("unipc", diffusion, network, scheduler.timesteps, clip, seed=6, end=end)
    assert_same_trajectory(mine, reference)


@pytest.mark.parametrize(("name", "their_class"), [("ancestral", "DDPMScheduler"), ("ddim", "DDIMScheduler")])
def test_v_prediction_from_zero_terminal_snr(name, their_class):
    scheduler = getattr(diffusers, their_class)(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    schedule = NoiseSchedule(rescale_zero_terminal_snr(make_betas("linear", 1000)))
    diffusion, network = GaussianDiffusion(schedule, "v"), RandomNetwork(3)
    options = (lambda g: {"use_clipped_model_output": True}) if name == "ddim" else with_generator
    reference = theirs(scheduler, network, options, seed=8)
    assert_same_trajectory(ours(name, diffusion, network, scheduler.timesteps, "static", seed=8), reference)


def test_heun():
    """Diffusers writes EDM's x/√ᾱ, asks twice a step, and starts from x_T/√ᾱ_T."""
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    diffusion, network = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000))), RandomNetwork(3)
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps[[0, *range(1, len(scheduler.timesteps), 2)]].tolist()
    noise = ImageNoise.of_seed(9, range(IMAGES), SHAPE)
    x_T = noise()
    x = x_T / diffusion.schedule.alpha_sigma(timesteps[0])[0]
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.float().reshape(1))
        x = scheduler.step(output, t, x).prev_sample
    mine = SAMPLERS["heun"](Denoiser(network, diffusion, clip=None), x_T, [*timesteps, -1.0], noise=noise)
    assert len(timesteps) == STEPS
    assert (mine - x).abs().max() <= 1e-4 * x.abs().max()
