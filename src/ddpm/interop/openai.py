"""Import checkpoints of improved-diffusion and guided-diffusion (Nichol & Dhariwal 2021, Dhariwal & Nichol 2021).

The weights determine most of the architecture. The rest comes from the flags of their scripts, given as their READMEs
print them ("--image_size 64 --num_head_channels 64 ..."); flags that follow from the weights are ignored. Upsamplers,
classifiers, --num_heads_upsample and pooled resampling are refused: our network cannot express them.
"""

import re
import shlex
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ddpm.common.errors import UserError, nearest
from ddpm.diffusion.gaussian import GaussianDiffusion, VarianceName
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.interop.diffusers import LoadedParts, fill
from ddpm.interop.storage import Weights, checked
from ddpm.networks import NetworkConfig, UNet

MODULE = re.compile(r"((?:input_blocks|output_blocks)\.\d+\.\d+|(?:middle_block|time_embed|out)\.\d+|label_emb)\.(.+)")
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
}


def is_openai(names: Collection[str]) -> bool:
    """Return whether a state dictionary has the names of these repositories."""
    return "input_blocks.0.0.weight" in names and "time_embed.0.weight" in names


class Architecture:
    """The part of the architecture that follows from the weights.

    Raises KeyError, IndexError or ValueError if they do not have the layout of the two repositories.
    """

    def __init__(self, state: dict[str, Tensor]):
        self.time_channels = state["time_embed.0.weight"].shape[1]
        self.in_channels = state["input_blocks.0.0.weight"].shape[1]
        self.out_channels = state["out.2.weight"].shape[0]
        self.num_classes = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None

        rows = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
        attended = [f"output_blocks.{row}.1.qkv.weight" in state for row in range(rows)]
        after = [f"output_blocks.{row}.{1 + attended[row]}" for row in range(rows)]
        by_conv = [row for row in range(rows) if f"{after[row]}.conv.weight" in state]
        by_block = [row for row in range(rows) if f"{after[row]}.in_layers.0.weight" in state]
        levels = 1 + len(by_conv) + len(by_block)
        each = rows // levels  # rows per level on the way up: one more than blocks on the way down
        if by_conv + by_block != [each * level - 1 for level in range(1, levels)] or rows % levels:
            raise ValueError("the order of output_blocks")

        first_rows = range((levels - 1) * each, -1, -each)  # of each level, from the full image down
        self.blocks = each - 1
        self.residual_resampling = bool(by_block)
        self.attended = [attended[row] for row in first_rows]
        self.widths = [state[f"output_blocks.{row}.0.out_layers.3.weight"].shape[0] for row in first_rows]
        self.scale_shift = state["middle_block.0.emb_layers.1.weight"].shape[0] == 2 * self.widths[-1]

    @property
    def attended_widths(self) -> set[int]:
        """The widths that have attention; the middle always has it."""
        return {width for width, attention in zip(self.widths, self.attended, strict=True) if attention} | {
            self.widths[-1]
        }

    def modules(self) -> Iterator[tuple[str, str]]:
        """Yield (their name, our name) of every module."""
        yield from ENDS.items()
        block, last = count(1), len(self.widths) - 1
        for level in range(last + 1):
            for index in range(self.blocks):
                number = next(block)
                yield f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{index}"
                yield f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{index}"
            if level < last:
                yield f"input_blocks.{next(block)}.0", f"down_blocks.{level}.downsamplers.0"
        for number in range((last + 1) * (self.blocks + 1)):
            level, index = divmod(number, self.blocks + 1)
            attention = self.attended[last - level]
            yield f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{index}"
            if attention:
                yield f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{index}"
            yield f"output_blocks.{number}.{1 + attention}", f"up_blocks.{level}.upsamplers.0"


def renamed(
    state: dict[str, Tensor], found: Architecture, *, heads: Callable[[int], int], new_order: bool
) -> dict[str, Tensor]:
    """Return the tensors under our names; an unknown name stays as it is.

    Args:
        heads: channels -> heads of an attention over them.
        new_order: whether q, k and v are split before the heads (their use_new_attention_order).
    """
    modules, tensors = dict(found.modules()), {}
    for name, tensor in state.items():
        match = MODULE.fullmatch(name)
        if match is None or match[1] not in modules:
            tensors[name] = tensor
            continue
        layer, _, kind = match[2].rpartition(".")
        if layer == "qkv":
            for letter, part in zip("qkv", split_qkv(tensor, heads(len(tensor) // 3), new_order), strict=True):
                tensors[f"{modules[match[1]]}.to_{letter}.{kind}"] = part
        else:
            words = modules[match[1]], LAYERS.get(layer, layer), kind
            tensors[".".join(word for word in words if word)] = tensor
    return tensors


def split_qkv(tensor: Tensor, heads: int, new_order: bool) -> Tensor:
    """Split a joint projection (3·C, ...) into q, k and v (3, C, ...): [q k v] of all heads, or (legacy) by head."""
    channels = len(tensor) // 3
    if new_order:
        return tensor.reshape(3, channels, *tensor.shape[1:])
    by_head = tensor.reshape(heads, 3, channels // heads, *tensor.shape[1:])
    return by_head.transpose(0, 1).reshape(3, channels, *tensor.shape[1:])


# Flags of their scripts that follow from the weights, and those that change neither the network nor its process.
FROM_WEIGHTS = {"num_channels", "num_res_blocks", "channel_mult", "attention_resolutions", "learn_sigma", "class_cond"}
FROM_WEIGHTS |= {"use_scale_shift_norm", "resblock_updown"}
IRRELEVANT = {"use_fp16", "use_checkpoint", "timestep_respacing", "use_kl", "rescale_learned_sigmas"}
SHOWN_STEPS = 1000  # what rescale_timesteps rescales to


class Flags(BaseModel, extra="forbid"):
    """Their model and diffusion flags that the weights do not determine."""

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

    def heads(self, width: int) -> int:
        """Return the number of heads of an attention over `width` channels."""
        return self.num_heads if self.num_head_channels == -1 else width // self.num_head_channels


def parse_flags(text: str) -> Flags:
    """Parse flags as they are typed: "--image_size 64 --num_head_channels 64"."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"the flags end inside a quotation ({error}): {text}") from None
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise UserError(f"flags must be pairs, --name value, not: {text}")
    given = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    given = {name: value for name, value in given.items() if name not in FROM_WEIGHTS | IRRELEVANT}
    for name in given.keys() - Flags.model_fields.keys():
        raise UserError(f"these scripts have no flag --{name}; {nearest(name, Flags.model_fields)}")
    if "image_size" not in given:
        raise UserError("the weights do not determine the image size: add it to --flags, e.g. --image_size 64")
    return checked(Flags, given, "their flags")


def from_openai(state: dict[str, Tensor], flags: Flags, where: str) -> LoadedParts:
    """Build the network and the process of a checkpoint; UserError if the network cannot be expressed."""
    try:
        found = Architecture(state)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where} is not a U-Net of improved- or guided-diffusion: {error}") from None
    check(found, flags, where)
    config = checked(NetworkConfig, network_fields(found, flags), where)
    size = (flags.image_size, flags.image_size)
    with torch.device("meta"):
        network = UNet(config, size, found.in_channels, found.out_channels, found.num_classes)
    tensors = renamed(state, found, heads=flags.heads, new_order=flags.use_new_attention_order)
    fill(network, Weights.of_tensors(where, tensors))
    diffusion = to_process(flags, learns_variance=found.out_channels == 2 * found.in_channels)
    return LoadedParts(network.eval(), diffusion, (found.in_channels, *size), {})


def network_fields(found: Architecture, flags: Flags) -> dict[str, object]:
    """Return the fields of `NetworkConfig` for their network."""
    base = found.widths[0]
    head_dims = {width // flags.heads(width) for width in found.attended_widths}
    one_head = head_dims == found.attended_widths
    return {
        "channels": base,
        "channel_mult": [width // base if width % base == 0 else width / base for width in found.widths],
        "blocks": found.blocks,
        "attention": [flags.image_size >> level for level, attention in enumerate(found.attended) if attention],
        # UNet2DModel has one head, or heads of one width: preferred if they are equivalent
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


def to_process(flags: Flags, *, learns_variance: bool) -> GaussianDiffusion:
    """Return their process.

    With rescaled timesteps the network was trained on t·1000/T for step t. Only every T/1000-th step is kept, as their
    own respacing does, so that the k-th step is the one that the network knows as k.
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
    return GaussianDiffusion(NoiseSchedule(betas), "x_0" if flags.predict_xstart else "epsilon", variance)


def check(found: Architecture, flags: Flags, where: str) -> None:
    """Raise UserError if the network is no DDPM, or cannot be expressed with these heads."""
    upsamples = found.in_channels == 6  # the input of their upsamplers is x_t and the small image, concatenated
    if upsamples or found.out_channels not in (found.in_channels, 2 * found.in_channels):
        raise UserError(
            f"{where} has {found.in_channels} input and {found.out_channels} output channels: no DDPM (an upsampler?)"
        )
    if flags.num_heads_upsample not in (-1, flags.num_heads) and flags.num_head_channels == -1:
        raise UserError(f"{where}: --num_heads_upsample cannot be expressed: both ways have the same heads here")
    divisor = flags.num_heads if flags.num_head_channels == -1 else flags.num_head_channels
    for width in found.attended_widths:
        if divisor == 0 or width % divisor:
            raise UserError(f"{where}: attention over {width} channels cannot be divided into heads as the flags say")
