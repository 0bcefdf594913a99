"""Trace a diffusion: the reverse process of a model or of a Diffusers pipeline, and the forward process.

The result is a `Trajectory`, which can be saved as a GIF, an MP4 or a strip.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.pixels import final_images
from ddpm.common.randomness import ImageNoise, derive_seed
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.model import Model, SamplingOptions
from ddpm.plotting.animation import FrameSpacing, Recorder, Trajectory
from ddpm.samplers import Callback, Noise, Step

MODEL_STEPS = 100
PAIR_STEPS = 50  # DDIMPipeline's default


def trace(
    source: Any,
    *,
    num: int = 1,
    steps: int | None = None,
    frames: int = 60,
    frame_spacing: FrameSpacing = "uniform",
    columns: int | None = None,
    **options: Any,
) -> Trajectory:
    """Sample images and keep x_t and the predicted x_0 at some of the steps.

    Args:
        source: a `Model`; or Diffusers' `DDPMPipeline`, `DDIMPipeline` or a (UNet2DModel, scheduler) pair. A pipeline
            is not changed: its scheduler is copied.
        num: number of images, shown as a grid of `columns`.
        steps: sampling steps; default: 100 for a model (or T, if that is less), the pipeline's own default otherwise.
        frames: most frames to keep. They are chosen before the run, so memory does not grow with the steps.
        frame_spacing: "uniform" over the steps or "log_snr".
        options: for a model, those of `trace_model`; for Diffusers, `generator` and the arguments of the scheduler's
            `step` (`eta`, `use_clipped_model_output`, …).

    Returns: the frames and the images; these equal `Model.sample`, or the pipeline's output for the same generator.
    """
    picked: dict[str, Any] = {"num": num, "frames": frames, "frame_spacing": frame_spacing, "columns": columns}
    if isinstance(source, Model):
        return trace_model(source, steps=steps, **picked, **options)
    if isinstance(source, tuple | list) and len(source) == 2:
        unet, scheduler = source
        default = PAIR_STEPS
    elif hasattr(source, "unet") and hasattr(source, "scheduler"):
        unet, scheduler = source.unet, source.scheduler
        default = inspect.signature(source.__call__).parameters["num_inference_steps"].default
    else:
        raise UserError(
            f"cannot trace a {type(source).__name__}: give a ddpm model, a Diffusers DDPMPipeline or DDIMPipeline, "
            "or a (UNet2DModel, scheduler) pair"
        )
    return trace_diffusers(unet, scheduler, steps=default if steps is None else steps, **picked, **options)


@torch.no_grad()
def trace_model(
    model: Model,
    options: SamplingOptions | None = None,
    *,
    num: int = 1,
    frames: int = 60,
    frame_spacing: FrameSpacing = "uniform",
    columns: int | None = None,
    image: Tensor | None = None,
    callback: Callback | None = None,
    **changes: Any,
) -> Trajectory:
    """Trace the reverse process of a model; see `trace`.

    Args:
        options: see `SamplingOptions`; by default ancestral sampling with 100 steps (or T, if that is less).
        image: (C, H, W) in [-1, 1]. The forward process first turns it into noise, and sampling starts from that
            noise. Half of the frames then show the forward process.
        callback: called with every `Step` of the sampler.
        changes: fields of `SamplingOptions` that replace those of `options`.

    Raises UserError if an option is wrong, or if more images are asked for than one batch holds.
    """
    options = SamplingOptions.of(options or SamplingOptions(sampler="ancestral"), **changes)
    schedule = model.diffusion.schedule
    if options.steps is None:
        options = SamplingOptions.of(options, steps=min(MODEL_STEPS, len(schedule)))
    options = options.resolved(model)
    assert options.batch_size is not None
    if not 1 <= num <= options.batch_size:
        raise UserError(f"cannot trace {num} images: the trajectories of this model show 1 to {options.batch_size}")
    timesteps = options.timesteps(model)
    denoiser = model.denoiser(options.labels_of(range(num)), options=options)
    noise = ImageNoise.of_seed(options.seed, range(num), model.image_shape, device=model.device)
    x_T, before = noise(), []
    if image is not None:
        if tuple(image.shape) != model.image_shape:
            shape = tuple(image.shape)
            raise UserError(f"the image is {shape} (channels, height, width); this model's are {model.image_shape}")
        if frames < 4:
            raise UserError(f"{frames} frames are too few to show both directions: give at least 4")
        start = image.to(model.device).expand(num, *model.image_shape)
        forward_seed = derive_seed(options.seed, "forward")
        forward_noise = ImageNoise.of_seed(forward_seed, range(num), model.image_shape, device=model.device)
        half, frames = frames // 2, frames - frames // 2
        forward_times = [-1.0, *map(float, range(int(timesteps[0]) + 1))]
        seen = Recorder(forward_times, schedule.log_snr, "forward", frames=half, spacing=frame_spacing, columns=columns)
        x_T = noised(schedule, start, forward_noise, seen, show_x_0=True)
        before = seen.frames
    recorder = Recorder(timesteps, schedule.log_snr, "reverse", frames=frames, spacing=frame_spacing, columns=columns)
    images = options.spec(
        denoiser, x_T, timesteps, noise=noise, callback=recording(recorder, callback), **options.sampler_options
    )
    return Trajectory(before + recorder.frames, model.finish(images))


def trace_forward(
    schedule: NoiseSchedule,
    image: Tensor,
    *,
    frames: int = 60,
    frame_spacing: FrameSpacing = "uniform",
    seed: int = 0,
) -> Trajectory:
    """Trace the forward process of an image (C, H, W) in [-1, 1]: it is noised step by step, q(x_t|x_{t-1})."""
    timesteps = [float(t) for t in range(-1, schedule.timesteps)]
    recorder = Recorder(timesteps, schedule.log_snr, "forward", frames=frames, spacing=frame_spacing)
    noise = ImageNoise.of_seed(derive_seed(seed, "forward"), [0], image.shape)
    return Trajectory(recorder.frames, noised(schedule, image[None], noise, recorder).clamp(-1, 1))


def noised(schedule: NoiseSchedule, x_0: Tensor, noise: Noise, recorder: Recorder, *, show_x_0: bool = False) -> Tensor:
    """Run the chain x_t = √(1-β_t) x_{t-1} + √β_t z (eq. 2) through the recorder's timesteps -1, 0, 1, …"""
    x_t, shown = x_0, x_0 if show_x_0 else None
    recorder.see(0, x_t, shown)
    for t in range(len(recorder.timesteps) - 1):
        beta = schedule.betas[t].item()
        x_t = (1 - beta) ** 0.5 * x_t + beta**0.5 * noise()
        recorder.see(t + 1, x_t, shown)
    return x_t


def recording(recorder: Recorder, then: Callback | None = None) -> Callback:
    """Return a sampler callback that records the start of each step and the end of the last one, and calls `then`."""

    def callback(step: Step) -> None:
        if then is not None:
            then(step)
        recorder.see(step.index, step.x_t, step.x_0)
        if step.index == step.steps - 1:
            recorder.see(step.steps, step.x_prev, step.x_prev)

    return callback


@torch.no_grad()
def trace_diffusers(
    unet: Any,
    scheduler: Any,
    *,
    num: int = 1,
    steps: int = 50,
    frames: int = 60,
    frame_spacing: FrameSpacing = "uniform",
    columns: int | None = None,
    generator: "torch.Generator | Sequence[torch.Generator] | None" = None,
    **step_options: Any,
) -> Trajectory:
    """Trace a Diffusers network with its own scheduler; the images equal its pipeline's; see `trace`."""
    from diffusers.utils.torch_utils import randn_tensor

    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule(scheduler.betas)
    size = unet.config.sample_size
    shape = (num, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    generators = list(generator) if isinstance(generator, Sequence) else generator
    x = randn_tensor(shape, generator=generators, device=unet.device, dtype=unet.dtype) * scheduler.init_noise_sigma

    if "generator" in inspect.signature(scheduler.step).parameters:
        step_options["generator"] = generators
    timesteps = [*scheduler.timesteps.tolist(), -1.0]
    recorder = Recorder(timesteps, schedule.log_snr, "reverse", frames=frames, spacing=frame_spacing, columns=columns)
    for index, t in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(x, t)  # the identity but for schedulers that keep x_t/√ᾱ
        output = unet(x_t, t).sample
        result = scheduler.step(output, t, x, **step_options)
        x_0 = getattr(result, "pred_original_sample", None)
        if x_0 is None and index in recorder.chosen:
            x_0 = _predicted_x_0(scheduler, schedule, output, x_t, float(t))
        recorder.see(index, x_t, x_0)
        x = result.prev_sample
    recorder.see(len(timesteps) - 1, x, x)
    return Trajectory(recorder.frames, final_images(x))


def _predicted_x_0(scheduler: Any, schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: float) -> Tensor:
    """Predict x_0 for schedulers that do not return it."""
    output = output[:, : x_t.shape[1]]  # without the learned variance
    alpha, sigma = schedule.alpha_sigma(t)
    match scheduler.config.prediction_type:
        case "sample":
            return output
        case "v_prediction":
            return alpha * x_t - sigma * output
        case _:
            return (x_t - sigma * output) / max(alpha, 1e-6)
