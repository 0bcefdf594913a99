"""The `network` section of a configuration. Free of PyTorch, so that help texts are quick."""

import math
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from ddpm.common.errors import UserError

ImageSize = tuple[int, int]  # height, width


class NetworkConfig(BaseModel, extra="forbid"):
    """The `network` section: the U-Net of Ho et al. 2020 (appendix B). The defaults are their CIFAR-10 network."""

    channels: int = Field(128, ge=1, description="width of the first level, and of the sinusoid that encodes t")
    time_channels: int | None = Field(
        None,
        ge=2,
        description="width of that sinusoid if it differs; the embedding of t has four times as many channels",
    )
    channel_mult: list[int | float] = Field(
        [1, 2, 2, 2],
        min_length=1,
        description="width of each level as a multiple of channels; each level halves the image",
    )
    blocks: int = Field(2, ge=1, description="residual blocks per level on the way down; one more on the way up")
    attention: list[int] = Field([16], description="feature-map sizes with self-attention (the shorter side)")
    head_dim: int | None = Field(
        None, ge=1, description="channels per attention head; null is one head over all channels"
    )
    heads: int | None = Field(
        None, ge=1, description="attention heads at every width, instead of head_dim (Dhariwal & Nichol 2021)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropout before a block's second convolution")
    groups: int = Field(32, ge=1, description="groups of the group norms")
    norm_eps: float = Field(1e-6, gt=0, description="ε of the group norms")
    conditioning: Literal["add", "scale_shift"] = Field(
        "add",
        description="how t and the class enter a block: a bias per channel (Ho et al.), or scale and shift (AdaGN)",
    )
    resample: Literal["conv", "resnet"] = Field(
        "conv", description="halve and double the image by a convolution (Ho et al.) or by a residual block"
    )
    mid_attention: bool = Field(True, description="self-attention between the two middle blocks")
    mid_attention_norm: bool = Field(True, description="group norm of that attention")
    freq_shift: float = Field(
        1, description="sinusoid frequencies run over channels/2 - freq_shift steps (Ho et al.: 1)"
    )
    flip_sin_to_cos: bool = Field(False, description="cosines before sines (improved diffusion: true)")
    downsample_padding: Literal[0, 1] = Field(
        0, description="padding of the stride-2 convolution: 0 right and below (Ho et al.), 1 on all sides"
    )
    gradient_checkpointing: bool = Field(
        False, description="save memory: keep only block inputs, compute the rest again"
    )

    @model_validator(mode="after")
    def _widths_fit(self) -> "NetworkConfig":
        for width in self.widths:
            if width < 1 or width % self.groups:
                raise ValueError(
                    f"a level of {width} channels does not divide into {self.groups} groups (network.groups)"
                )
        if self.heads and self.head_dim:
            raise ValueError("give head_dim or heads, not both")
        encoded = self.time_channels or self.widths[0]
        if encoded // 2 <= self.freq_shift:
            least = 2 * math.floor(self.freq_shift) + 2
            raise ValueError(f"t is encoded in {encoded} channels, but that takes at least {least}")
        return self

    @property
    def widths(self) -> list[int]:
        """Return the channels of each level, from the full image down."""
        return [round(self.channels * multiple) for multiple in self.channel_mult]

    def heads_over(self, width: int) -> int:
        """Return the number of heads of an attention over `width` channels.

        Raises UserError if the channels do not divide into the heads.
        """
        if width % (self.head_dim or self.heads or 1):
            heads = f"heads of {self.head_dim}" if self.head_dim else f"{self.heads} heads"
            raise UserError(
                f"attention over {width} channels cannot be divided into {heads}: "
                f"choose network.head_dim or network.heads so that they divide {width}"
            )
        return self.heads or (width // self.head_dim if self.head_dim else 1)

    def level_sizes(self, image_size: ImageSize) -> list[ImageSize]:
        """Return the (height, width) of each level's feature map, from the full image down.

        Raises UserError if a side cannot be halved once per further level.
        """
        levels = len(self.channel_mult)
        factor = 2 ** (levels - 1)
        for side in image_size:
            if side % factor:
                most = (side & -side).bit_length()
                sizes = " or ".join(str(n) for n in (side // factor * factor, side // factor * factor + factor) if n)
                raise UserError(
                    f"{levels} levels need sides that divide by {factor}, and {side} does not: "
                    f"use {sizes} pixels, or at most {most} level{'s' * (most > 1)} (network.channel_mult)"
                )
        height, width = image_size
        return [(height >> level, width >> level) for level in range(levels)]

    def attention_levels(self, image_size: ImageSize) -> list[bool]:
        """Return for each level whether it has self-attention.

        Raises UserError if `attention` names a size that no level has.
        """
        sides = [min(size) for size in self.level_sizes(image_size)]
        for size in self.attention:
            if size not in sides:
                raise UserError(
                    f"network.attention names {size}, but the levels of a {image_size[0]}×{image_size[1]} image are "
                    f"{', '.join(map(str, sides))}: choose among these"
                )
        return [side in self.attention for side in sides]
