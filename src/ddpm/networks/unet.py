"""The U-Net of Ho et al. 2020, appendix B, with the variations of Nichol & Dhariwal 2021 and Dhariwal & Nichol 2021.

Its `state_dict` has exactly the keys of Diffusers' `UNet2DModel`. Parameters stay in float32 and are cast to the
activations' dtype where they are used (as in EDM). So the dtype of the image selects the precision.
"""

import math
from collections.abc import Callable, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.common.errors import UserError
from ddpm.networks.config import ImageSize, NetworkConfig
from ddpm.networks.dropout import Dropout
from ddpm.networks.norm import GroupNorm

# Ho et al. write "zero" for a variance scale of 1e-10, so the layer starts near zero but not at a saddle
NEAR_ZERO = 1e-5

# up to this size the CPU's flash attention is slower than two matrix products (its backward pass three times, in
# bfloat16); beyond it, their tokens × tokens matrix needs too much memory
MATMUL_TOKENS = 1024

# embeddings of fewer images are padded to this: the product of a matrix and few vectors adds in another order
ROWS = 4
USUAL_BATCH = 16  # by which a faster formula is chosen: the choice must not depend on the batch at hand


def _xavier(layer: "Conv | Linear", gain: float) -> None:
    """Ho et al.'s initialisation: uniform with variance gain² · 2 / (fan_in + fan_out), biases zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


def memory_order(x: Tensor) -> torch.memory_format:
    """Return channels-last, except in full precision on the CPU, where the default order is as fast or faster."""
    full = x.dtype in (torch.float32, torch.float64)
    return torch.contiguous_format if x.device.type == "cpu" and full else torch.channels_last


class Linear(nn.Linear):
    """A linear layer that computes in the dtype of its input."""

    bias: nn.Parameter

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0):
        super().__init__(inputs, outputs)
        _xavier(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if x.ndim == 2 and len(x) < ROWS and not self.training:
            return F.linear(F.pad(x, (0, 0, 0, ROWS - len(x))), weight, bias)[: len(x)]
        return F.linear(x, weight, bias)


class Conv(nn.Conv2d):
    """A convolution that computes in the dtype of its input.

    Args:
        adds_bias: False leaves the bias to the caller, who can add it at less cost.
    """

    bias: nn.Parameter

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        gain: float = 1.0,
        adds_bias: bool = True,
    ):
        super().__init__(inputs, outputs, kernel, stride, padding)
        self.adds_bias = adds_bias
        _xavier(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.to(x.dtype) if self.adds_bias else None
        weight = self.weight.to(x.dtype, memory_format=memory_order(x))
        # where x or its output has one channel both orders are the same, and PyTorch takes the wrong one
        return F.conv2d(x, weight, bias, self.stride, self.padding).contiguous(memory_format=memory_order(x))


def sinusoid(t: Tensor, channels: int, freq_shift: float, flip_sin_to_cos: bool) -> Tensor:
    """Encode timesteps (N,), fractional or not, as (N, channels) in float32 (Vaswani et al. 2017, section 3.5)."""
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * exponent.exp()
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, channels % 2))


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoid, (N, channels) -> (N, 4·channels)."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear_1 = Linear(channels, 4 * channels)
        self.linear_2 = Linear(4 * channels, 4 * channels)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class Downsample(nn.Module):
    """Halve the image by a stride-2 convolution."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = Conv(channels, channels, 3, stride=2, padding=padding)
        self.pads_right_and_below = padding == 0

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """x (N, C, H, W); the other arguments of a residual block, which may replace it, are ignored."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pads_right_and_below else x)


class Upsample(nn.Module):
    """Double the image by its nearest pixel, then convolve."""

    # Along one axis, doubling and then three taps (w0, w1, w2) are a stride-2 transposed convolution with the four taps
    # (w2, w1 + w2, w0 + w1, w0)
    TAPS = ((0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0))

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """x (N, C, H, W); the other arguments of a residual block, which may replace it, are ignored."""
        # 16 multiplications per pixel of x instead of 36, if a batch has enough pixels to pay for folding the kernel
        if x.device.type == "cpu" and USUAL_BATCH * x[0].numel() >= 2 * x.shape[1] ** 2:
            return F.conv_transpose2d(x, self._folded(x.dtype), self.conv.bias.to(x.dtype), stride=2, padding=1)
        return self.conv(doubled(x))

    def _folded(self, dtype: torch.dtype) -> Tensor:
        """Return the kernel of the transposed convolution, (inputs, outputs, 4, 4)."""
        weight = self.conv.weight.to(torch.promote_types(dtype, torch.float32))
        taps = torch.tensor(self.TAPS, dtype=weight.dtype)
        both = torch.einsum("ia,jb->ijab", taps, taps).reshape(9, 16)
        return (weight.flatten(2) @ both).unflatten(2, (4, 4)).transpose(0, 1).to(dtype).contiguous()


def doubled(x: Tensor) -> Tensor:
    """Repeat every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halved(x: Tensor) -> Tensor:
    """Return the mean of every 2×2 pixels."""
    return F.avg_pool2d(x, 2)


Resample = Callable[[Tensor], Tensor] | None


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, conditioning, norm, SiLU, dropout, conv, and the sum with the input.

    Args:
        embedding: width of the embedding of t and the class.
        layer: number of the block, so that every block has its own dropout masks.
        resample: None, or `halved` or `doubled`, done between the first SiLU and convolution.
    """

    def __init__(
        self, config: NetworkConfig, inputs: int, outputs: int, embedding: int, layer: int, resample: Resample = None
    ):
        super().__init__()
        self.scale_shift = config.conditioning == "scale_shift"
        self.resample = resample
        self.norm1 = GroupNorm(config.groups, inputs, config.norm_eps)
        self.conv1 = Conv(inputs, outputs, 3, padding=1, adds_bias=False)
        self.time_emb_proj = Linear(embedding, outputs * (2 if self.scale_shift else 1))
        self.norm2 = GroupNorm(config.groups, outputs, config.norm_eps)
        self.dropout = Dropout(config.dropout, layer)
        self.conv2 = Conv(outputs, outputs, 3, padding=1, gain=NEAR_ZERO)
        self.conv_shortcut = Conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, embedding: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """x (N, inputs, H, W); embedding (N, embedding) after its SiLU, float32 -> (N, outputs, H', W')."""
        h = self.norm1(x)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        # the bias of conv1 is added inside the norm, so that its gradient costs no pass over the pixels
        condition, bias = self.time_emb_proj(embedding), self.conv1.bias.to(embedding.dtype)[None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm2(h, bias, scale, shift)
        else:
            h = self.norm2(h, bias + condition)
        h = self.conv2(self.dropout(h, dropout_keys))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, added to it (Vaswani et al. 2017)."""

    def __init__(self, config: NetworkConfig, channels: int, norm: bool = True):
        super().__init__()
        self.heads = config.heads_over(channels)
        self.group_norm = GroupNorm(config.groups, channels, config.norm_eps, silu=False) if norm else None
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.ModuleList([Linear(channels, channels, gain=NEAR_ZERO)])

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        n, channels, height, width = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        tokens = h.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        q, k, v = (
            layer(tokens).reshape(n, height * width, self.heads, -1).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        h = attention(q, k, v).transpose(1, 2).reshape(n, height, width, channels)
        return x + self.to_out[0](h).permute(0, 3, 1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q·kᵀ / √d)·v over (N, heads, tokens, d); the softmax is computed in float32."""
    if q.device.type == "cpu" and q.shape[-2] <= MATMUL_TOKENS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if the level has it."""

    def __init__(self, config: NetworkConfig, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.checkpointing = config.gradient_checkpointing

    def block(self, index: int, h: Tensor, embedding: Tensor, keys: Tensor | None) -> Tensor:
        """Apply a residual block and the attention after it, if there is one."""
        h = self.call(self.resnets[index], h, embedding, keys)
        return self.call(self.attentions[index], h) if index < len(self.attentions) else h

    def call(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Call a module, and keep only its inputs for the backward pass if gradients are checkpointed."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
        return module(*inputs)


class Down(Level):
    """A level on the way down; appends every result to `skips`."""

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
    """The two blocks at the lowest resolution."""

    def forward(self, h: Tensor, embedding: Tensor, keys: Tensor | None) -> Tensor:
        for index in range(len(self.resnets)):
            h = self.block(index, h, embedding, keys)
        return h


class Up(Level):
    """A level on the way up; consumes `skips` from the end."""

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
    """The network that predicts ε, x_0 or v (and a variance) from x_t, t and a class.

    Args:
        config: widths, levels, attention.
        image_size: (height, width) of the images.
        in_channels, out_channels: 1 to 4 of the image; twice as many outputs if the variance is learned.
        num_classes: rows of the class embedding, the null class included; None for an unconditional network.

    Raises UserError if the levels do not divide the image, or `config.attention` names a size that no level has.
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
            t: (N,), 0 to T-1, may be fractional.
            labels: (N,) int64; required if the network has classes.
            dropout_keys: (N,) int64; the dropout masks of an image are a function of its key. None in training mode
                takes random keys from torch's generator.

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
        """Return the embedding of t and the class for every block: (N, 4·channels), after SiLU, in float32."""
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
