"""The U-Net of Ho et al. 2020, appendix B, with the variations of Nichol & Dhariwal 2021 and Dhariwal & Nichol 2021.

Its `state_dict` has exactly the keys of Diffusers' `UNet2DModel`.
"""

from collections.abc import Callable, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.errors import UserError
from ddpm.networks.config import ImageSize, NetworkConfig
from ddpm.networks.layers import (
    NEAR_ZERO,
    Attention,
    Conv,
    Downsample,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    doubled,
    halved,
    memory_order,
    sinusoid,
)
from ddpm.networks.norm import GroupNorm


class Level(nn.Module):
    """The blocks of one resolution, each with its attention where the level has any."""

    def __init__(self, config: NetworkConfig, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.checkpointing = config.gradient_checkpointing

    def block(self, index: int, h: Tensor, embedding: Tensor, keys: Tensor | None) -> Tensor:
        h = self.call(self.resnets[index], h, embedding, keys)
        return self.call(self.attentions[index], h) if index < len(self.attentions) else h

    def call(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
        return module(*inputs)


class Down(Level):
    """Leaves every result in `skips`."""

    def __init__(self, config: NetworkConfig, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]):
        super().__init__(config, resnets, attentions)
        self.downsamplers = nn.ModuleList()

    def forward(self, h: Tensor, skips: list[Tensor], embedding: Tensor, keys: Tensor | None) -> Tensor:
        for index in range(len(self.resnets)):
            h = self.block(index, h, embedding, keys)
            skips.append(h)
        for downsampler in self.downsamplers:
            h = self.call(downsampler, h, embedding, keys)
            skips.append(h)
        return h


class Middle(Level):
    def forward(self, h: Tensor, embedding: Tensor, keys: Tensor | None) -> Tensor:
        for index in range(len(self.resnets)):
            h = self.block(index, h, embedding, keys)
        return h


class Up(Level):
    """Takes in what the way down left, last first."""

    def __init__(self, config: NetworkConfig, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]):
        super().__init__(config, resnets, attentions)
        self.upsamplers = nn.ModuleList()

    def forward(self, h: Tensor, skips: list[Tensor], embedding: Tensor, keys: Tensor | None) -> Tensor:
        for index in range(len(self.resnets)):
            h = self.block(index, torch.cat([h, skips.pop()], dim=1), embedding, keys)
        for upsampler in self.upsamplers:
            h = self.call(upsampler, h, embedding, keys)
        return h


class UNet(nn.Module):
    """Predicts what the process asks for (ε, x_0, v, and a variance) from x_t, t and a class.

    Args:
        config: widths, levels, attention.
        image_size: (height, width) of the images.
        in_channels, out_channels: 1 to 4 of the image; twice as many out where the variance is learned.
        num_classes: rows of the class embedding, the null class included; None for an unconditional network.

    Raises:
        UserError: the levels do not divide the image, or no level has a size that `config.attention` names.
    """

    def __init__(
        self,
        config: NetworkConfig,
        image_size: ImageSize,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int | None = None,
    ):
        super().__init__()
        self.config, self.image_size = config, image_size
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        widths, attended = config.widths, config.attention_levels(image_size)
        self.time_channels = config.time_channels or widths[0]
        embedding, layer = 4 * self.time_channels, count()

        def block(inputs: int, outputs: int, resample: Callable[[Tensor], Tensor] | None = None) -> ResidualBlock:
            return ResidualBlock(config, inputs, outputs, embedding, next(layer), resample)

        self.conv_in = Conv(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(self.time_channels)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, embedding)

        skips, width = [widths[0]], widths[0]
        self.down_blocks = nn.ModuleList()
        for index, outputs in enumerate(widths):
            resnets = [block(n, outputs) for n in [width] + [outputs] * (config.blocks - 1)]
            down = Down(config, resnets, [Attention(config, outputs) for _ in resnets if attended[index]])
            skips += [outputs] * config.blocks
            if index < len(widths) - 1:
                convolves = config.resample == "conv"
                down.downsamplers.append(
                    Downsample(outputs, config.downsample_padding) if convolves else block(outputs, outputs, halved)
                )
                skips.append(outputs)
            self.down_blocks.append(down)
            width = outputs

        attentions = [Attention(config, width, config.mid_attention_norm)] if config.mid_attention else []
        self.mid_block = Middle(config, [block(width, width), block(width, width)], attentions)

        self.up_blocks = nn.ModuleList()
        for index, outputs in reversed(list(enumerate(widths))):
            inputs = [width + skips.pop()] + [outputs + skips.pop() for _ in range(config.blocks)]
            resnets = [block(n, outputs) for n in inputs]
            up = Up(config, resnets, [Attention(config, outputs) for _ in resnets if attended[index]])
            if index > 0:
                up.upsamplers.append(
                    Upsample(outputs) if config.resample == "conv" else block(outputs, outputs, doubled)
                )
            self.up_blocks.append(up)
            width = outputs

        self.conv_norm_out = GroupNorm(config.groups, width, config.norm_eps)
        self.conv_out = Conv(width, out_channels, 3, padding=1, gain=NEAR_ZERO)

    def forward(
        self, x_t: Tensor, t: Tensor, labels: Tensor | None = None, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """Predict from a noisy image.

        Args:
            x_t: (N, in_channels, H, W), about unit variance; its dtype is the precision of the computation.
            t: (N,), 0 to T-1, fractional where a sampler asks.
            labels: (N,) int64; needed where there are classes.
            dropout_keys: (N,) int64: the dropout masks of an image are a function of its key. None in training mode
                draws keys from torch's generator.

        Returns:
            (N, out_channels, H, W) in x_t's dtype.
        """
        embedding = self._embedding(x_t, t, labels)
        if self.training and self.config.dropout > 0 and dropout_keys is None:
            dropout_keys = torch.randint(2**62, (len(x_t),), device=x_t.device)
        h = self.conv_in(x_t.contiguous(memory_format=memory_order(x_t)))
        skips = [h]
        for down in self.down_blocks:
            h = down(h, skips, embedding, dropout_keys)
        h = self.mid_block(h, embedding, dropout_keys)
        for up in self.up_blocks:
            h = up(h, skips, embedding, dropout_keys)
        return self.conv_out(self.conv_norm_out(h))

    def _embedding(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """What every block is told of t and the class: (N, 4·channels), after SiLU, in float32."""
        if (labels is None) != (self.class_embedding is None):
            raise UserError(
                "this network has no classes: give no labels"
                if labels is not None
                else "this network is class-conditional: give labels"
            )
        waves = sinusoid(t, self.time_channels, self.config.freq_shift, self.config.flip_sin_to_cos)
        embedding = self.time_embedding(waves.to(torch.promote_types(x_t.dtype, torch.float32)))
        if self.class_embedding is not None and labels is not None:
            embedding = embedding + self.class_embedding(labels).to(embedding.dtype)
        return F.silu(embedding)
