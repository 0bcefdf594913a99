"""Checkpoints of improved- and guided-diffusion (Nichol & Dhariwal 2021, Dhariwal & Nichol 2021) as our network.

The weights tell most of the architecture; the rest is in their scripts' flags, given as their READMEs print them
("--image_size 64 --num_head_channels 64 ..."). Where a flag tells what the weights tell too, the two must agree.
Refused, because no DDPM or not expressible: upsamplers, classifiers, --num_heads_upsample, pooled resampling.
"""

import difflib
import re
import shlex
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ddpm.errors import UserError
from ddpm.interop.diffusers import LoadedParts, fill
from ddpm.interop.folder import Weights, checked
from ddpm.interop.openai_names import Architecture, renamed
from ddpm.networks import NetworkConfig, UNet
from ddpm.process.gaussian import GaussianProcess, VarianceName
from ddpm.process.schedule import NoiseSchedule, make_betas

# Flags of their scripts that change neither the network nor the process it was trained on.
IRRELEVANT = {"use_fp16", "use_checkpoint", "timestep_respacing", "use_kl", "rescale_learned_sigmas"}
SHOWN_STEPS = 1000  # what rescale_timesteps rescales to


class Flags(BaseModel):
    """Their model and diffusion flags. Those that may be None are told by the weights, and checked where given."""

    model_config = ConfigDict(extra="forbid")

    image_size: int = Field(ge=8, le=65536)
    num_heads: int = Field(4, ge=1)
    num_heads_upsample: int = -1
    num_head_channels: int = Field(-1, ge=-1)
    use_new_attention_order: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    diffusion_steps: int = Field(1000, ge=2, le=1_000_000)
    noise_schedule: Literal["linear", "cosine"] = "linear"
    predict_xstart: bool = False
    sigma_small: bool = False
    rescale_timesteps: bool = True  # improved-diffusion's default; guided-diffusion's published models need none
    num_channels: int | None = None
    num_res_blocks: int | None = None
    channel_mult: str | None = None
    attention_resolutions: str | None = None
    learn_sigma: bool | None = None
    class_cond: bool | None = None
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None

    def heads(self, width: int) -> int:
        """Heads of an attention over `width` channels."""
        return self.num_heads if self.num_head_channels == -1 else width // self.num_head_channels


def parse_flags(text: str) -> Flags:
    """Flags as one types them: "--image_size 64 --num_head_channels 64"."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"the flags end too early ({error}): close what is open in {text}") from None
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise UserError(f"flags come as pairs, --name value, which this is not: {text}")
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    for name in given.keys() - Flags.model_fields - IRRELEVANT:
        near = difflib.get_close_matches(name, Flags.model_fields, n=1)
        raise UserError(f"--{name} is no flag of theirs that tells a network" + f": --{near[0]}?" * bool(near))
    if "image_size" not in given:
        raise UserError("the weights do not tell the images' size: the flags must, e.g. --image_size 64")
    return checked(Flags, {name: value for name, value in given.items() if name not in IRRELEVANT}, "their flags")


def from_openai(state: dict[str, Tensor], flags: Flags, where: str) -> LoadedParts:
    """The network and process of a checkpoint.

    Raises:
        UserError: the flags contradict the weights, or the network cannot be expressed.
    """
    try:
        found = Architecture(state)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where} is no U-Net of improved- or guided-diffusion, {error} is not as there") from None
    check(found, flags, where)
    config = checked(NetworkConfig, network_fields(found, flags), where)
    size = (flags.image_size, flags.image_size)
    with torch.device("meta"):
        network = UNet(config, size, found.in_channels, found.out_channels, found.num_classes)
    tensors = renamed(state, found, heads=flags.heads, new_order=flags.use_new_attention_order)
    fill(network, Weights.of_tensors(where, tensors))
    process = to_process(flags, learns_variance=found.out_channels == 2 * found.in_channels)
    return LoadedParts(network.eval(), process, (found.in_channels, *size), {})


def network_fields(found: Architecture, flags: Flags) -> dict[str, object]:
    """Our configuration of their network."""
    base = found.widths[0]
    head_dims = {width // flags.heads(width) for width in found.attended_widths}
    one_head = head_dims == found.attended_widths
    return {
        "channels": base,
        "channel_mult": [width // base if width % base == 0 else width / base for width in found.widths],
        "blocks": found.blocks,
        "attention": [flags.image_size >> level for level, attention in enumerate(found.attended) if attention],
        # UNet2DModel knows one head, or heads of one width: those are preferred where they say the same
        "head_dim": min(head_dims) if len(head_dims) == 1 and not one_head else None,
        "heads": flags.num_heads if len(head_dims) > 1 and not one_head else None,
        "time_channels": None if found.time_channels == base else found.time_channels,
        "dropout": flags.dropout,
        "groups": 32,
        "norm_eps": 1e-5,
        "conditioning": "scale_shift" if found.scale_shift else "add",
        "resample": "resnet" if found.residual_resampling else "conv",
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "downsample_padding": 1,
    }


def to_process(flags: Flags, *, learns_variance: bool) -> GaussianProcess:
    """Their process.

    With rescaled timesteps the network was shown t·1000/T for step t. Taken as the process of every T/1000-th step
    alone, as their own respacing would, its k-th step is the one that the network was shown as k.
    """
    steps = flags.diffusion_steps
    betas = make_betas(flags.noise_schedule, steps, 0.1 / steps, 20 / steps)
    if flags.rescale_timesteps and steps != SHOWN_STEPS:
        if steps % SHOWN_STEPS:
            raise UserError(f"{steps} timesteps rescaled to {SHOWN_STEPS} are not whole, and cannot be expressed")
        kept = (1 - betas).cumprod(0)[:: steps // SHOWN_STEPS]
        betas = 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])
    fixed: VarianceName = "fixed_small" if flags.sigma_small else "fixed_large"
    variance: VarianceName = "learned_range" if learns_variance else fixed
    return GaussianProcess(NoiseSchedule(betas), "x_0" if flags.predict_xstart else "epsilon", variance)


def check(found: Architecture, flags: Flags, where: str) -> None:
    """What the flags say twice must be what the weights say; what is no DDPM or not expressible is named."""
    upsamples = found.in_channels == 6  # their upsamplers see x_t and, beside it, the small image in as many channels
    if upsamples or found.out_channels not in (found.in_channels, 2 * found.in_channels):
        raise UserError(f"{where} makes {found.out_channels} channels of {found.in_channels}: no DDPM (an upsampler?)")
    if flags.num_heads_upsample not in (-1, flags.num_heads) and flags.num_head_channels == -1:
        raise UserError(f"{where}: --num_heads_upsample cannot be expressed: both ways have the same heads here")
    divisor = flags.num_heads if flags.num_head_channels == -1 else flags.num_head_channels
    for width in found.attended_widths:
        if divisor == 0 or width % divisor:
            raise UserError(f"{where}: attention over {width} channels does not divide into heads as the flags say")
    told = {
        "num_channels": found.time_channels,
        "num_res_blocks": found.blocks,
        "channel_mult": ",".join(f"{width / found.time_channels:g}" for width in found.widths),
        "learn_sigma": found.out_channels == 2 * found.in_channels,
        "class_cond": found.num_classes is not None,
        "use_scale_shift_norm": found.scale_shift,
        "resblock_updown": found.residual_resampling,
    }
    for name, value in told.items():
        if getattr(flags, name) not in (None, "", value):
            raise UserError(f"{where}: the weights have --{name} {value}, not {getattr(flags, name)}")
    sides = [flags.image_size >> level for level in range(len(found.widths))]
    attended = {side for side, attention in zip(sides, found.attended, strict=True) if attention}
    named = {int(word) for word in re.findall(r"\d+", flags.attention_resolutions or "")}
    if flags.attention_resolutions and named & set(sides) != attended:
        at = ",".join(map(str, sorted(attended, reverse=True)))
        raise UserError(f"{where}: the weights have --attention_resolutions {at}, not {flags.attention_resolutions}")
