"""Convert configurations between Diffusers (`UNet2DModel`, schedulers) and this package."""

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, Field

from ddpm.common.errors import UserError
from ddpm.common.names import PredictionName
from ddpm.diffusion.gaussian import GaussianDiffusion, VarianceName
from ddpm.diffusion.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.interop.storage import checked
from ddpm.networks import NetworkConfig, UNet

UNET2D = "UNet2DModel"
OURS = "UNet"  # class name of a configuration that UNet2DModel cannot express

# Bounds far beyond every real model: an absurd file must be refused before a network is built.
Width = Annotated[int, Field(ge=1, le=65536)]
Side = Annotated[int, Field(ge=1, le=65536)]
Rows = Annotated[int, Field(ge=1, le=10_000_000)]
Blocks = Annotated[int, Field(ge=1, le=16)]

DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


class UNet2DConfig(BaseModel, extra="ignore", allow_inf_nan=False):
    """The fields of `UNet2DModel` that decide what it computes, with its own defaults; others are ignored, as there."""

    sample_size: Side | tuple[Side, Side]
    in_channels: Width = 3
    out_channels: Width = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: list[str] = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: list[str] = ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    block_out_channels: list[Width] = Field([224, 448, 672, 896], min_length=1, max_length=12)
    layers_per_block: Blocks = 2
    mid_block_scale_factor: float = Field(1, ge=1, le=1)
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Width | None = 8
    norm_num_groups: Width = 32
    attn_norm_num_groups: Width | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: Rows | None = None


class OurConfig(BaseModel, extra="ignore", allow_inf_nan=False):
    """The configuration that is stored if `UNet2DModel` cannot express a network."""

    network: NetworkConfig
    image_size: tuple[Side, Side]
    in_channels: Width
    out_channels: Width
    num_classes: Rows | None


def obstacle(network: UNet) -> str | None:
    """Return what `UNet2DModel` cannot express about a network, or None."""
    config = network.config
    if config.mid_attention and not config.mid_attention_norm and config.conditioning == "add":
        return "attention in the middle without a group norm, where t is an added bias"
    if config.time_channels not in (None, config.widths[0]):
        return f"t encoded in {config.time_channels} channels before a first level of {config.widths[0]}"
    if len(_head_dims(network)) > 1 and config.heads not in (None, 1):
        return f"{config.heads} attention heads over different widths"
    return None


def to_unet2d(network: UNet) -> dict[str, Any]:
    """Return the `config.json` of a network: `UNet2DModel`'s, or our own if that cannot express it."""
    config = network.config
    if obstacle(network):
        return {
            "_class_name": OURS,
            "network": config.model_dump(),
            "image_size": list(network.image_size),
            "in_channels": network.in_channels,
            "out_channels": network.out_channels,
            "num_classes": network.num_classes,
        }
    attended = config.attention_levels(network.image_size)
    conv = config.resample == "conv"
    down, up = ("DownBlock2D", "UpBlock2D") if conv else ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    height, width = network.image_size
    return {
        "_class_name": UNET2D,
        "sample_size": height if height == width else [height, width],
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": int(config.freq_shift) if config.freq_shift == int(config.freq_shift) else config.freq_shift,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "down_block_types": ["AttnDownBlock2D" if attention else down for attention in attended],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D" if attention else up for attention in reversed(attended)],
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": config.downsample_padding,
        "downsample_type": config.resample,
        "upsample_type": config.resample,
        "dropout": config.dropout,
        "act_fn": "silu",
        "attention_head_dim": config.head_dim if config.heads in (None, 1) else min(_head_dims(network), default=None),
        "norm_num_groups": config.groups,
        # if it is left out, Diffusers gives the middle a norm for an added bias, and none for scale and shift
        "attn_norm_num_groups": config.groups if config.mid_attention_norm else None,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "default" if config.conditioning == "add" else "scale_shift",
        "add_attention": config.mid_attention,
        "class_embed_type": None,
        "num_class_embeds": network.num_classes,
    }


def _head_dims(network: UNet) -> set[int]:
    """Return the widths of all attention heads."""
    config = network.config
    attended = zip(config.widths, config.attention_levels(network.image_size), strict=True)
    widths = {width for width, attention in attended if attention}
    if config.mid_attention:
        widths.add(config.widths[-1])
    return {width // config.heads_over(width) for width in widths}


def to_our_config(values: dict[str, Any], where: str) -> OurConfig:
    """Read a `config.json`; UserError if it is wrong, or if our network cannot express it."""
    name = values.get("_class_name", UNET2D)
    if name == OURS:
        return checked(OurConfig, {key: value for key, value in values.items() if key != "_class_name"}, where)
    if name != UNET2D:
        raise UserError(f"{where} describes a {name}; only UNet2DModel can be opened")
    if values.get("sample_size") is None:
        raise UserError(f"{where} has no sample_size: add the side of the images, or [height, width]")
    config = checked(UNet2DConfig, values, where)
    size = config.sample_size
    image_size = (size, size) if isinstance(size, int) else size
    network = checked(NetworkConfig, _network_fields(config, image_size, where), where)
    return OurConfig(
        network=network,
        image_size=image_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_classes=config.num_class_embeds,
    )


def _network_fields(config: UNet2DConfig, image_size: tuple[int, int], where: str) -> dict[str, Any]:
    widths, base = config.block_out_channels, config.block_out_channels[0]
    if config.time_embedding_dim not in (None, 4 * base):
        raise UserError(f"{where}: time_embedding_dim must be {4 * base}, four times the first width")
    if config.attn_norm_num_groups not in (None, config.norm_num_groups):
        raise UserError(f"{where}: attn_norm_num_groups must equal norm_num_groups")
    down = [name.removeprefix("UNetRes") for name in config.down_block_types]  # the prefix of Diffusers before 0.3
    up = [name.removeprefix("UNetRes") for name in config.up_block_types]
    attended = _attended(down, up, len(widths), where)
    attended_widths = {width for width, attention in zip(widths, attended, strict=True) if attention}
    if config.add_attention:
        attended_widths.add(widths[-1])
    one_head = attended_widths <= {config.attention_head_dim}
    return {
        "channels": base,
        "channel_mult": [width // base if width % base == 0 else width / base for width in widths],
        "blocks": config.layers_per_block,
        "attention": [min(image_size) >> level for level, attention in enumerate(attended) if attention],
        "head_dim": None if one_head else config.attention_head_dim,
        "dropout": config.dropout,
        "groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
        "conditioning": "add" if config.resnet_time_scale_shift == "default" else "scale_shift",
        "resample": _resample(config, down, up, where),
        "mid_attention": config.add_attention,
        "mid_attention_norm": config.resnet_time_scale_shift == "default" or config.attn_norm_num_groups is not None,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "downsample_padding": config.downsample_padding,
    }


def _attended(down: list[str], up: list[str], levels: int, where: str) -> list[bool]:
    """Return whether each level has attention; it must be the same on the way down and up."""
    if len(down) != levels or len(up) != levels:
        raise UserError(f"{where}: block_out_channels, down_block_types and up_block_types must be equally long")
    for name, known in [*((name, DOWN) for name in down), *((name, UP) for name in up)]:
        if name not in known:
            raise UserError(f"{where}: no block type {name} can be opened; known are {', '.join(known)}")
    ways = [name.startswith("Attn") for name in down], [name.startswith("Attn") for name in reversed(up)]
    if ways[0] != ways[1]:
        raise UserError(f"{where}: a level must have attention on the way down and on the way up, or on neither")
    return ways[0]


def _resample(config: UNet2DConfig, down: list[str], up: list[str], where: str) -> str:
    """Return how levels are resampled; as in Diffusers, `downsample_type` applies only to levels with attention."""
    kinds = {config.downsample_type if name.startswith("Attn") else _kind(name) for name in down[:-1]}
    kinds |= {config.upsample_type if name.startswith("Attn") else _kind(name) for name in up[:-1]}
    if len(kinds) > 1:
        raise UserError(f"{where}: all levels must be halved and doubled one way, by convolution or by residual block")
    return kinds.pop() if kinds else "conv"


def _kind(block: str) -> str:
    return "resnet" if block.startswith("Resnet") else "conv"


MAX_TIMESTEPS = 1_000_000

SCHEDULES: dict[str, ScheduleName] = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS: dict[str, PredictionName] = {"epsilon": "epsilon", "sample": "x_0", "v_prediction": "v"}
# Every Diffusers scheduler knows the other names; only DDPMScheduler knows "sigmoid", so its betas are written out.
WRITTEN = [theirs for theirs in SCHEDULES if theirs != "sigmoid"]

Beta = Annotated[float, Field(gt=0, le=1)]


class SchedulerConfig(BaseModel):
    """The fields of Diffusers' β schedulers that say how a network was trained."""

    num_train_timesteps: int = Field(1000, ge=2, le=MAX_TIMESTEPS)
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    trained_betas: list[Beta] | None = Field(None, min_length=2, max_length=MAX_TIMESTEPS)
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"] = (
        "fixed_small"
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = True
    clip_sample_range: float = 1.0


def to_process(values: dict[str, Any], learns_variance: bool, where: str) -> GaussianDiffusion:
    """Return the process that a network was trained with.

    If the scheduler names no variance (DDIM has none), it is the learned range if the network has twice as many output
    as input channels, and β̃ otherwise, which is DDIM's with η = 1.
    """
    values = {name: value for name, value in values.items() if value is not None}  # null means not given
    if "beta_schedule" not in values and "trained_betas" not in values:
        name = values.get("_class_name", "this scheduler")
        raise UserError(f"{where}: {name} has no betas; a DDPM needs a β schedule")
    config = checked(SchedulerConfig, values, where)
    if config.clip_sample and config.clip_sample_range != 1:
        raise UserError(
            f"{where}: clip_sample_range is {config.clip_sample_range:g}, so its images are not in [-1, 1], as they "
            "must be here: open it with Diffusers"
        )
    variance = cast(VarianceName, config.variance_type.removesuffix("_log"))
    if learns_variance and "variance_type" not in values:
        variance = "learned_range"
    if learns_variance != (variance == "learned_range"):
        raise UserError(
            f"{where}: variance_type is {config.variance_type}, but the network "
            f"{'predicts' if learns_variance else 'does not predict'} a variance (out_channels twice in_channels)"
        )
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float64)
    else:
        name = SCHEDULES[config.beta_schedule]
        betas = make_betas(name, config.num_train_timesteps, config.beta_start, config.beta_end)
    if config.rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    return GaussianDiffusion(NoiseSchedule(betas), PREDICTIONS[config.prediction_type], variance)


def to_scheduler(diffusion: GaussianDiffusion) -> dict[str, Any]:
    """Return the `scheduler_config.json` of a process: a DDPMScheduler with exactly its betas."""
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.schedule.timesteps,
        **schedule_words(diffusion.schedule),
        "prediction_type": predictions[diffusion.prediction],
        "variance_type": diffusion.variance,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": "trailing",  # with fewer steps than T, starts at pure noise (Lin et al. 2024, section 3.3)
        "steps_offset": 0,
    }


def schedule_words(schedule: NoiseSchedule) -> dict[str, Any]:
    """Return the named schedule that gives exactly these betas, or else the betas themselves."""
    for words, betas in _named(schedule):
        if torch.equal(betas, schedule.betas):
            return {"trained_betas": None, **words}
    return {
        "trained_betas": schedule.betas.tolist(),
        "beta_schedule": "linear",
        "beta_start": float(schedule.betas[0]),
        "beta_end": float(schedule.betas[-1]),
        "rescale_betas_zero_snr": False,
    }


def _named(schedule: NoiseSchedule) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Yield candidates: β_0 and β_{T-1} as they are and rounded to 12 digits; rescaling keeps only β_0."""
    first, last = float(schedule.betas[0]), float(schedule.betas[-1])
    rescaled = schedule.zero_terminal_snr
    starts = dict.fromkeys([first, float(f"{first:.12g}")])
    ends = [0.02] if rescaled else dict.fromkeys([last, float(f"{last:.12g}")])
    for theirs, start, end in itertools.product(WRITTEN, starts, ends):
        betas = make_betas(SCHEDULES[theirs], schedule.timesteps, start, end)
        words = {"beta_schedule": theirs, "beta_start": start, "beta_end": end, "rescale_betas_zero_snr": rescaled}
        yield words, rescale_zero_terminal_snr(betas) if rescaled else betas
