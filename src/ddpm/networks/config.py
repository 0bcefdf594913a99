"""The `network:` section of a configuration."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ddpm.common.errors import UserError

ImageSize = tuple[int, int]  # height, width


class NetworkConfig(BaseModel):
    """The U-Net of Ho et al. 2020 (appendix B); the defaults are their CIFAR-10 network.

    Args:
        channels: width of the first level, and of the sinusoid that encodes t.
        time_channels: width of that sinusoid if it differs; the embedding of t has four times as many.
        channel_mult: width of each level, as a multiple of `channels`; each further level halves the image.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: the feature-map sizes that have self-attention (of a non-square map, its shorter side).
        head_dim: channels per attention head; null is one head over all channels.
        heads: attention heads at every width, instead of `head_dim` (`num_heads` of Dhariwal & Nichol).
        dropout: probability, between the second norm and the second convolution of a block.
        groups: number of groups of the group norms.
        norm_eps: ε of the group norms.
        conditioning: how t and the class enter a block: "add" a bias to every channel (Ho et al.) or
            "scale_shift" of the second norm (Dhariwal & Nichol 2021, section 3 "AdaGN").
        resample: halve and double the image by one "conv" (Ho et al.) or by a "resnet" block (Dhariwal & Nichol).
        mid_attention, mid_attention_norm: self-attention between the two middle blocks, and its group norm.
        freq_shift, flip_sin_to_cos: the sinusoid's frequencies run over `channels / 2 - freq_shift` steps, and
            whether cosines come first. Ho et al.: 1, false; improved diffusion and Diffusers' default: 0, true.
        downsample_padding: of the stride-2 convolution: 0 pads right and below only (Ho et al.), 1 all round.
        gradient_checkpointing: keep only the input of each block for the backward pass and recompute the rest.
    """

    model_config = ConfigDict(extra="forbid")

    channels: int = Field(128, ge=1)
    time_channels: int | None = Field(None, ge=2)
    channel_mult: list[int | float] = Field([1, 2, 2, 2], min_length=1)
    blocks: int = Field(2, ge=1)
    attention: list[int] = [16]
    head_dim: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    groups: int = Field(32, ge=1)
    norm_eps: float = Field(1e-6, gt=0)
    conditioning: Literal["add", "scale_shift"] = "add"
    resample: Literal["conv", "resnet"] = "conv"
    mid_attention: bool = True
    mid_attention_norm: bool = True
    freq_shift: float = 1
    flip_sin_to_cos: bool = False
    downsample_padding: Literal[0, 1] = 0
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _widths_fit(self) -> "NetworkConfig":
        for width in self.widths:
            if width < 1 or width % self.groups:
                raise ValueError(f"a level of {width} channels cannot be divided into {self.groups} groups")
        if self.heads and self.head_dim:
            raise ValueError("give head_dim or heads, not both")
        encoded = self.time_channels or self.widths[0]
        if encoded // 2 <= self.freq_shift:
            least = 2 * math.floor(self.freq_shift) + 2
            raise ValueError(f"t is encoded in {encoded} channels, but that takes at least {least}")
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from the full image down."""
        return [round(self.channels * multiple) for multiple in self.channel_mult]

    def heads_over(self, width: int) -> int:
        """Return the number of heads of an attention over `width` channels.

        Raises:
            UserError: they do not divide the channels.
        """
        if width % (self.head_dim or self.heads or 1):
            heads = f"heads of {self.head_dim}" if self.head_dim else f"{self.heads} heads"
            raise UserError(
                f"attention over {width} channels cannot be divided into {heads}: "
                f"choose network.head_dim or network.heads so that they divide {width}"
            )
        return self.heads or (width // self.head_dim if self.head_dim else 1)

    def level_sizes(self, image_size: ImageSize) -> list[ImageSize]:
        """Return (height, width) of the feature map of each level, from the full image down.

        Raises:
            UserError: a side cannot be halved once per level.
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
        """Return whether each level has self-attention.

        Raises:
            UserError: `attention` names a size that no level has.
        """
        sides = [min(size) for size in self.level_sizes(image_size)]
        for size in self.attention:
            if size not in sides:
                raise UserError(
                    f"network.attention names {size}, but the levels of a {image_size[0]}×{image_size[1]} image are "
                    f"{', '.join(map(str, sides))}: choose among these"
                )
        return [side in self.attention for side in sides]
