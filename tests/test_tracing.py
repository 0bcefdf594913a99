"""Traces end where sampling ends: our models', and Diffusers' pipelines' for the same generator."""

import copy
import math
import re
from pathlib import Path

import PIL.Image
import pytest
import torch

import ddpm
from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import Model
from ddpm.networks import UNet
from ddpm.networks.config import NetworkConfig
from ddpm.plotting.trace import trace, trace_forward, trace_model
from ddpm.samplers import SAMPLERS, timestep_grid

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "pictures.md"
SCHEDULE = NoiseSchedule(make_betas("linear", 50, 1e-3, 0.2))


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[], groups=4)
        network = UNet(config, (8, 8), 3, 3, 4)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    names = ["a", "b", "c"]
    return Model(network, GaussianDiffusion(SCHEDULE), image_shape=(3, 8, 8), class_names=names, null_label=3)


@pytest.fixture
def unet():
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
        )
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return unet.eval()


# --- models of ours


@pytest.mark.parametrize("sampler", ["ancestral", "dpm++", "heun"])
def test_a_trace_ends_at_what_sample_draws(model, sampler):
    options = {"sampler": sampler, "steps": 6, "labels": [1, 2], "guidance": 1.5, "seed": 3, "precision": "fp32"}
    traced = trace(model, num=3, frames=4, **options)
    assert torch.equal(traced.images, model.sample(3, **options))
    assert [frame.t for frame in traced.frames] == timestep_grid(SCHEDULE, 6, SAMPLERS[sampler].spacing)[::2]
    assert all(frame.x_0 is not None for frame in traced.frames)


def test_every_step_can_be_a_frame(model):
    traced = trace(model, num=1, steps=5, frames=100, seed=1)
    assert [frame.t for frame in traced.frames] == [49, 39, 29, 19, 9, -1]
    assert torch.equal(traced.frames[-1].x_t, to_uint8(traced.images)[0])
    assert torch.equal(traced.frames[-1].x_t, traced.frames[-1].x_0)
    assert [frame.log_snr for frame in traced.frames[:-1]] == [SCHEDULE.log_snr(t) for t in (49, 39, 29, 19, 9)]


def test_forward_and_reverse_are_joined_at_the_same_noise(model):
    image = torch.linspace(-1, 1, 3 * 8 * 8).reshape(3, 8, 8)
    traced = trace_model(model, image=image, steps=10, frames=12, seed=2, labels=0)
    phases = [frame.phase for frame in traced.frames]
    assert phases == ["forward"] * 6 + ["reverse"] * 6
    forward, reverse = traced.frames[:6], traced.frames[6:]
    assert torch.equal(forward[0].x_t, to_uint8(image))
    assert [forward[0].t, forward[-1].t, reverse[0].t, reverse[-1].t] == [-1, 49, 49, -1]
    assert torch.equal(forward[-1].x_t, reverse[0].x_t)
    assert all(torch.equal(frame.x_0, to_uint8(image)) for frame in forward)


def test_an_image_of_another_shape_is_refused(model):
    with pytest.raises(UserError, match=r"\(1, 8, 8\)"):
        trace_model(model, image=torch.zeros(1, 8, 8))


@pytest.mark.parametrize("options", [{"num": 0}, {"num": 100_000}, {"steps": 51}, {"sampler": "ddimm"}, {"frames": 1}])
def test_impossible_traces_are_refused(model, options):
    with pytest.raises(UserError):
        trace(model, **options)


# --- the forward process


def test_the_forward_chain_has_the_marginals_of_q():
    """Running eq. 2 step by step gives eq. 4: x_t ~ N(√ᾱ_t x_0, 1-ᾱ_t)."""
    image = torch.full((1, 100, 100), 0.5)
    traced = trace_forward(SCHEDULE, image, frames=51, seed=4)
    assert len(traced.frames) == 51
    assert torch.equal(traced.frames[0].x_t, to_uint8(image))
    assert traced.frames[0].x_0 is None
    alpha_bar = SCHEDULE.alpha_bar(20)
    seen = traced.frames[21].x_t.float() / 127.5 - 1  # clipped to [-1, 1] for the eye: look at the median
    assert traced.frames[21].t == 20
    assert seen.median().item() == pytest.approx(0.5 * math.sqrt(alpha_bar), abs=0.05)
    last = traced.images  # clipped as well
    sigma = math.sqrt(1 - SCHEDULE.alpha_bar(49))
    inside = ((last > -1) & (last < 1)).float().mean().item()
    assert inside == pytest.approx(math.erf(1 / sigma / math.sqrt(2)), abs=0.02)


def test_the_forward_chain_is_one_path():
    """Neighbouring frames share their noise: x_t - √(1-β_t) x_{t-1} is small where β is."""
    schedule = NoiseSchedule(torch.full((10,), 1e-3))
    traced = trace_forward(schedule, torch.zeros(1, 32, 32), frames=11)
    levels = torch.stack([frame.x_t.float() for frame in traced.frames]) / 127.5
    assert levels.diff(dim=0).std() < 0.05
    assert (levels[-1] - levels[0]).std() > 0.08


# --- Diffusers' pipelines


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + i) for i in range(count)]


@pytest.mark.parametrize("many", [False, True])
def test_a_ddpm_pipelines_trace_ends_at_its_own_images(unet, many):
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=60))
    pipeline.set_progress_bar_config(disable=True)
    before = copy.deepcopy(pipeline.scheduler.__dict__)
    draw = (lambda: generators(2)) if many else (lambda: torch.Generator().manual_seed(5))
    traced = ddpm.trace(pipeline, num=2, steps=20, frames=7, generator=draw())
    assert pipeline.scheduler.__dict__.keys() == before.keys()
    assert torch.equal(pipeline.scheduler.timesteps, before["timesteps"])
    assert pipeline.scheduler.num_inference_steps == before["num_inference_steps"]
    images = pipeline(batch_size=2, num_inference_steps=20, generator=draw(), output_type="pt").images
    assert torch.equal((traced.images / 2 + 0.5).clamp(0, 1), images)
    assert len(traced.frames) == 7


def test_the_last_frame_is_the_pipelines_picture(unet):
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=30))
    pipeline.set_progress_bar_config(disable=True)
    traced = ddpm.trace(pipeline, steps=30, generator=torch.Generator().manual_seed(8))
    image = pipeline(num_inference_steps=30, generator=torch.Generator().manual_seed(8), output_type="pil").images[0]
    shown = traced.frames[-1].x_t.permute(1, 2, 0).numpy()
    assert shown.tobytes() == image.tobytes()


@pytest.mark.parametrize("options", [{}, {"eta": 0.7, "use_clipped_model_output": True}])
def test_a_ddim_pipelines_trace_ends_at_its_own_images(unet, options):
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    traced = ddpm.trace(pipeline, num=2, generator=generators(2), **options)  # the pipeline's own default: 50 steps
    images = pipeline(batch_size=2, generator=generators(2), output_type="pt", **options).images
    assert torch.equal((traced.images / 2 + 0.5).clamp(0, 1), images)
    assert len(traced.frames) == 51


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_network_with_any_scheduler(unet, name):
    """These do not tell their predicted x_0; the last one of it is nearly the image."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)()
    traced = ddpm.trace((unet, scheduler), steps=25, frames=100, generator=torch.Generator().manual_seed(6))
    assert len(traced.frames) == 26
    assert all(frame.x_0 is not None for frame in traced.frames)
    assert scheduler.num_inference_steps is None
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    scheduler.set_timesteps(25)
    x = x * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    assert torch.equal(traced.images, x.clamp(-1, 1))


def test_a_pipelines_predictions_are_the_schedulers(unet):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=20)
    traced = ddpm.trace((unet, scheduler), steps=20, frames=21, generator=torch.Generator().manual_seed(7))
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        predicted = scheduler.step(unet(x, 19).sample, 19, x).pred_original_sample
    assert torch.equal(traced.frames[0].x_0, to_uint8(predicted)[0])
    assert torch.equal(traced.frames[0].x_t, to_uint8(x)[0])


def test_the_documented_example_runs(unet, tmp_path, monkeypatch):
    """As it is printed, but for the model's name."""
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained("mine")
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(example.replace("google/ddpm-cifar10-32", "mine"), names)
    pipeline = names["pipeline"]
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(batch_size=4, num_inference_steps=100, generator=generator, output_type="pt").images
    assert torch.equal((names["trajectory"].images / 2 + 0.5).clamp(0, 1), images)
    with PIL.Image.open("denoising.gif") as animation:
        assert animation.n_frames == 60
    with PIL.Image.open("denoising.png") as strip:
        assert strip.width > 2 * strip.height


def test_anything_else_is_refused():
    with pytest.raises(UserError, match="cannot trace a dict"):
        ddpm.trace({})
