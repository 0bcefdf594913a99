"""The layers of the U-Net. Parameters are kept in float32 and cast to the activations' dtype where they are used
(as in EDM), so that the caller chooses the precision by the dtype of the image and no autocast is needed.

Attribute names follow Diffusers, so that its `state_dict` is ours.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.networks.config import NetworkConfig
from ddpm.networks.dropout import Dropout
from ddpm.networks.norm import GroupNorm

# Ho et al. write "zero" for a variance scale of 1e-10, so the layer starts near zero but not at a saddle
NEAR_ZERO = 1e-5

# up to here the CPU's flash attention is slower than two matrix products (its backward pass three times, in bfloat16),
# beyond, their tokens × tokens matrix takes too much memory
MATMUL_TOKENS = 1024


def _xavier(layer: "Conv | Linear", gain: float) -> None:
    """Ho et al.'s initialisation: uniform with variance gain² · 2 / (fan_in + fan_out), biases zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)


def memory_order(x: Tensor) -> torch.memory_format:
    """Channels-last, except in full precision on the CPU, whose kernels are as fast or faster the ordinary way."""
    full = x.dtype in (torch.float32, torch.float64)
    return torch.contiguous_format if x.device.type == "cpu" and full else torch.channels_last


class Linear(nn.Linear):
    bias: nn.Parameter

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0):
        super().__init__(inputs, outputs)
        _xavier(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Conv(nn.Conv2d):
    """Args:
    adds_bias: False leaves the bias to the caller, who has a cheaper place for it.
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
        """x (N, C, H, W); the embedding and keys of a residual block in its place are not needed."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pads_right_and_below else x)


class Upsample(nn.Module):
    """Double the image by its nearest pixel, then convolve."""

    # Along one axis, doubling and then the three taps (w0, w1, w2) are a stride-2 transposed convolution with the four
    # taps (w2, w1 + w2, w0 + w1, w0)
    TAPS = ((0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0))

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """x (N, C, H, W); the embedding and keys of a residual block in its place are not needed."""
        # 16 multiplications a pixel of x instead of 36, once there are pixels enough to pay for folding the kernel
        if x.device.type == "cpu" and x.numel() >= 2 * x.shape[1] ** 2:
            return F.conv_transpose2d(x, self._folded(x.dtype), self.conv.bias.to(x.dtype), stride=2, padding=1)
        return self.conv(doubled(x))

    def _folded(self, dtype: torch.dtype) -> Tensor:
        """The transposed convolution's kernel, (inputs, outputs, 4, 4)."""
        weight = self.conv.weight.to(torch.promote_types(dtype, torch.float32))
        taps = torch.tensor(self.TAPS, dtype=weight.dtype)
        both = torch.einsum("ia,jb->ijab", taps, taps).reshape(9, 16)
        return (weight.flatten(2) @ both).unflatten(2, (4, 4)).transpose(0, 1).to(dtype).contiguous()


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halved(x: Tensor) -> Tensor:
    """The mean of every 2×2 pixels."""
    return F.avg_pool2d(x, 2)


Resample = Callable[[Tensor], Tensor] | None


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, conditioning, norm, SiLU, dropout, conv, and the sum with the input.

    Args:
        embedding: width of the embedding of t and the class.
        layer: the block's number, which tells its dropout masks from the others'.
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
        # conv1's bias joins what the norm adds anyway, so that its gradient costs no pass over the pixels
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
    """softmax(q·kᵀ / √d)·v over (N, heads, tokens, d); the softmax is computed in float32 whatever the dtype."""
    if q.device.type == "cpu" and q.shape[-2] <= MATMUL_TOKENS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
