"""Our U-Nets beside the same ones in Diffusers, every tensor random: a last layer near zero would hide everything."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddpm.networks import NetworkConfig, UNet

# what google/ddpm-cifar10-32 and the 256 px models (celebahq, bedroom, cat: one architecture) say in their config.json
HO_ET_AL = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}
CIFAR10 = {
    **HO_ET_AL,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "sample_size": 32,
}
PIXELS256 = {
    **HO_ET_AL,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "sample_size": 256,
}
SHRUNK256 = {**PIXELS256, "block_out_channels": (32, 32, 64, 64, 128, 128), "sample_size": 64}

# a small network with attention at its second level, and Diffusers' words for it
SMALL = {
    **HO_ET_AL,
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "sample_size": 16,
}
OURS: dict[str, Any] = {"channels": 16, "channel_mult": [1, 2, 3], "attention": [8], "groups": 8}
RESAMPLED = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
DEFAULTS = {"freq_shift": 0, "flip_sin_to_cos": True, "downsample_padding": 1, "norm_eps": 1e-5}


@dataclass
class Case:
    """The same network in our words and in Diffusers'."""

    config: dict[str, Any]
    diffusers: dict[str, Any]
    image_size: tuple[int, int] = (16, 16)
    in_channels: int = 3
    out_channels: int = 3
    num_classes: int | None = None

    def build(self) -> tuple[UNet, UNet2DModel]:
        """Both, with the same random weights, in evaluation mode."""
        torch.manual_seed(0)
        theirs = UNet2DModel(
            **self.diffusers,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            num_class_embeds=self.num_classes,
        ).eval()
        randomize(theirs)
        ours = UNet(
            NetworkConfig(**self.config), self.image_size, self.in_channels, self.out_channels, self.num_classes
        ).eval()
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return ours, theirs

    def inputs(self, dtype: torch.dtype, number: int = 2) -> tuple[Tensor, Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(number, self.in_channels, *self.image_size, dtype=dtype, generator=generator)
        t = torch.tensor([3.0, 871.25, 500.0, 0.0])[:number]
        return x, t, None if self.num_classes is None else torch.arange(number) % self.num_classes


CASES = {
    "cifar10": Case({}, CIFAR10, (32, 32)),
    "256px": Case({"channels": 32, "channel_mult": [1, 1, 2, 2, 4, 4], "attention": [4]}, SHRUNK256, (64, 64)),
    "classes": Case(OURS, SMALL, num_classes=5),
    "diffusers_defaults": Case(
        {**OURS, **DEFAULTS, "head_dim": 8}, {**SMALL, **DEFAULTS, "attention_head_dim": 8}, num_classes=5
    ),
    "scale_shift": Case(
        {**OURS, "conditioning": "scale_shift"},
        {**SMALL, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
        num_classes=5,
    ),
    "scale_shift_without_mid_norm": Case(
        {**OURS, "conditioning": "scale_shift", "mid_attention_norm": False},
        {**SMALL, "resnet_time_scale_shift": "scale_shift"},
    ),
    "resnet_resample": Case({**OURS, "resample": "resnet"}, {**SMALL, **RESAMPLED}),
    "without_mid_attention": Case({**OURS, "mid_attention": False}, {**SMALL, "add_attention": False}),
    "one_block": Case({**OURS, "blocks": 1}, {**SMALL, "layers_per_block": 1}),
    "non_square_grey_learned_variance": Case(OURS, SMALL, (16, 32), 1, 2),
    "four_channels_wide": Case(OURS, SMALL, (24, 16), 4, 8),
}


@torch.no_grad()
def randomize(network: nn.Module) -> None:
    """Every tensor random, scaled so that activations neither vanish nor grow."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.normal_(std=0.3)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
