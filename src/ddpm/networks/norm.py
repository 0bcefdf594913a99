"""Group normalisation with its conditioning and SiLU, as one operation.

`_plain` is the definition. PyTorch's own kernel is slow on channels-last images, which half-precision convolutions
prefer: on the CPU it takes ten times as long as `_Fused`. On a CUDA GPU, where it also copies the images to the other
order and back, it takes twice as long as `_ByChannel`, which is also written for a compiler.
"""

import math
import threading
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# elements processed at once, so that their float32 copies stay in the cache of a core
CHUNK = 2**19

_room = threading.local()


class GroupNorm(nn.GroupNorm):
    """y = silu(norm(x + added) · (1 + scale) + shift), each part but the norm optional.

    Statistics and the affine map are float32 whatever x is. Ho et al. use "norm, nonlinearity" (Wu & He 2018) with
    `added` before it, Dhariwal & Nichol 2021 `scale` and `shift` (AdaGN).
    """

    def __init__(self, groups: int, channels: int, eps: float, silu: bool = True):
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(
        self, x: Tensor, added: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """x (N, C, H, W); added (N or 1, C), scale, shift (N, C) in float32 -> x's shape and dtype."""
        exact = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(exact), self.bias.to(exact)
        on_cpu = x.device.type == "cpu" and x.dtype != exact and not torch.compiler.is_compiling()
        if not on_cpu and x.device.type != "cuda":
            return _plain(x, added, scale, shift, weight, bias, self.num_groups, self.eps, self.silu)
        gamma, beta = weight[None], bias[None]
        if scale is not None and shift is not None:
            gamma, beta = gamma * (1 + scale), beta * (1 + scale) + shift
        operation = _Fused if on_cpu else _ByChannel
        return operation.apply(x, added, gamma, beta, self.num_groups, self.eps, self.silu)


def _plain(
    x: Tensor,
    added: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    h = x.to(weight.dtype)
    if added is not None:
        h = h + added[:, :, None, None]
    h = F.group_norm(h, groups, weight, bias, eps)
    if scale is not None and shift is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return (F.silu(h) if silu else h).to(x.dtype)


class _ByChannel(torch.autograd.Function):
    """`_plain` as an affine map per image and channel: sums over pixels first, which is fast in channels-last order,
    then over the channels of a group.

    The derivative is written out, with the formulas of `_Fused`: a compiler makes fewer passes over the pixels of it
    than of PyTorch's own (docs/reports/speed.md).
    """

    @staticmethod
    def forward(ctx, x, added, gamma, beta, groups, eps, silu):
        size = x.shape[2] * x.shape[3]
        sum_x = x.sum((2, 3), dtype=gamma.dtype)
        squares = torch.linalg.vector_norm(x, dim=(2, 3), dtype=gamma.dtype).square()
        offset, r, a, b = _affine(sum_x, squares, added, gamma, beta, groups, eps, size)
        z = torch.addcmul(b[:, :, None, None], x, a[:, :, None, None])
        ctx.save_for_backward(x, gamma, sum_x, offset, r, a, b)
        ctx.groups, ctx.silu = groups, silu
        ctx.shapes = None if added is None else added.shape, gamma.shape, beta.shape
        return (F.silu(z) if silu else z).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, gamma, sum_x, offset, r, a, b = ctx.saved_tensors
        size = x.shape[2] * x.shape[3]
        dz = grad.to(gamma.dtype)
        if ctx.silu:
            dz = torch.ops.aten.silu_backward(dz, torch.addcmul(b[:, :, None, None], x, a[:, :, None, None]))
        d_beta = dz.sum((2, 3))
        d_gamma = r * torch.addcmul((dz * x).sum((2, 3)), offset, d_beta)
        level, slope = _slopes(d_beta, d_gamma, gamma, offset, r, ctx.groups, size)
        d_added = a * d_beta + slope * sum_x + size * level
        dx = dz * a[:, :, None, None] + slope[:, :, None, None] * x + level[:, :, None, None]
        grads = zip((d_added, d_gamma, d_beta), ctx.shapes, strict=True)
        parts = (None if shape is None else gradient.sum_to_size(shape) for gradient, shape in grads)
        return dx.to(x.dtype), *parts, None, None, None


def _affine(
    sum_x: Tensor,
    squares: Tensor,
    added: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    eps: float,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `offset`, `r`, `a` and `b`, (N, C) each, from Σx and Σx² over the `size` pixels of each channel.

    Per image and channel, everything before SiLU is affine in x: with r = 1/√(var + ε) of the group,
    x̂ = r·(x + offset), z = a·x + b and y = silu(z).
    """
    # E[x²] - E[x]² loses digits only through float32 sums: the difference itself is in float64
    sums = torch.stack([sum_x, squares]).double()
    if added is not None:  # Σ(x + added) and Σ(x + added)²
        sums = torch.stack([sums[0] + size * added, sums[1] + added * (2 * sums[0] + size * added)])
    mean, second = sums.unflatten(-1, (groups, -1)).mean(-1) / size
    rsqrt = (second - mean.square()).clamp(min=0).add(eps).rsqrt()
    offset, r = (_spread(each, sum_x.shape[1]).to(gamma.dtype) for each in (-mean, rsqrt))
    if added is not None:
        offset = offset + added
    a = r * gamma
    return offset, r, a, torch.addcmul(beta, a, offset)


def _slopes(
    d_beta: Tensor, d_gamma: Tensor, gamma: Tensor, offset: Tensor, r: Tensor, groups: int, size: int
) -> tuple[Tensor, Tensor]:
    """Return `level` and `slope`, (N, C), of dx = a·dz + slope·x + level.

    dx = r·(γ·dz - mean(γ·dz) - x̂·mean(γ·dz·x̂)), the means over the group, with x̂ = r·(x + offset).
    """
    means = torch.stack([d_beta, d_gamma]) * gamma
    means = means.reshape(2, len(d_beta), groups, -1).mean(-1) / size
    level, slope = -r * _spread(means, d_beta.shape[1])
    slope = slope * r
    return torch.addcmul(level, slope, offset), slope


class _Fused(torch.autograd.Function):
    """`_plain` and its derivative, as sums and multiply-adds over the (N, H·W, C) view, a few images at a time.
    `gamma` and `beta` (N or 1, C) are the whole affine map.
    """

    @staticmethod
    def forward(ctx, x, added, gamma, beta, groups, eps, silu):
        pixels = _pixels(x)
        n, size, channels = pixels.shape
        out = torch.empty_like(pixels)
        kept = torch.empty(5, n, channels, dtype=gamma.dtype)  # the sum of x, offset, r, a, b
        buffers = _buffers(pixels, gamma.dtype, 2)
        for rows in _chunks(pixels):
            h, work = (buffer[: rows.stop - rows.start] for buffer in buffers)
            h.copy_(pixels[rows])
            sum_x, squares = h.sum(1), torch.mul(h, h, out=work).sum(1)
            shift = None if added is None else _of(added, rows)
            factors = _affine(sum_x, squares, shift, _of(gamma, rows), _of(beta, rows), groups, eps, size)
            torch.stack([sum_x, *factors], out=kept[:, rows])
            _, _, a, b = factors
            torch.addcmul(b[:, None], h, a[:, None], out=work)
            out[rows].copy_(F.silu(work, inplace=True) if silu else work)
        ctx.save_for_backward(x, gamma, kept)
        ctx.groups, ctx.silu = groups, silu
        ctx.shapes = None if added is None else added.shape, gamma.shape, beta.shape
        return _image(out, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, gamma, kept = ctx.saved_tensors
        pixels, grad_pixels = _pixels(x), _pixels(grad)
        n, size, channels = pixels.shape
        out = torch.empty_like(pixels)
        grads = torch.empty(3, n, channels, dtype=gamma.dtype)
        buffers = _buffers(pixels, gamma.dtype, 3)
        for rows in _chunks(pixels):
            h, dz, work = (buffer[: rows.stop - rows.start] for buffer in buffers)
            sum_x, offset, r, a, b = kept[:, rows].unbind()
            d_added, d_gamma, d_beta = grads[:, rows].unbind()
            h.copy_(pixels[rows])
            dz.copy_(grad_pixels[rows])
            if ctx.silu:
                torch.addcmul(b[:, None], h, a[:, None], out=work)
                torch.ops.aten.silu_backward(dz, work, grad_input=dz)
            torch.sum(dz, 1, out=d_beta)
            torch.mul(r, torch.addcmul(torch.mul(dz, h, out=work).sum(1), offset, d_beta), out=d_gamma)
            level, slope = _slopes(d_beta, d_gamma, _of(gamma, rows), offset, r, ctx.groups, size)
            torch.add(torch.addcmul(a * d_beta, slope, sum_x), level, alpha=size, out=d_added)
            torch.addcmul(level[:, None], h, slope[:, None], out=work)
            out[rows].copy_(work.addcmul_(dz, a[:, None]))
        parts = (g if s is None else g.sum_to_size(s) for g, s in zip(grads, ctx.shapes, strict=True))
        d_added, d_gamma, d_beta = parts
        return _image(out, x), None if ctx.shapes[0] is None else d_added, d_gamma, d_beta, None, None, None


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H·W, C), a view if x is channels-last."""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).contiguous().reshape(n, height * width, channels)


def _image(pixels: Tensor, like: Tensor) -> Tensor:
    n, channels, height, width = like.shape
    return pixels.reshape(n, height, width, channels).permute(0, 3, 1, 2)


def _spread(per_group: Tensor, channels: int) -> Tensor:
    """(..., G) -> (..., C)."""
    return per_group.repeat_interleave(channels // per_group.shape[-1], dim=-1)


def _of(per_image: Tensor, rows: slice) -> Tensor:
    """Return these rows of a tensor (N, C); the only row of (1, C), which is the same for every image."""
    return per_image[rows] if len(per_image) > 1 else per_image


def _images_at_once(pixels: Tensor) -> int:
    return min(len(pixels), max(1, CHUNK // pixels[0].numel()))


def _chunks(pixels: Tensor) -> Iterator[slice]:
    step = _images_at_once(pixels)
    return (slice(start, min(start + step, len(pixels))) for start in range(0, len(pixels), step))


def _buffers(pixels: Tensor, dtype: torch.dtype, number: int) -> list[Tensor]:
    """Return buffers for a few images each, kept per thread: new memory would cost a page fault per 4 KiB."""
    shape = (_images_at_once(pixels), *pixels.shape[1:])
    needed = number * math.prod(shape)
    memory: Tensor | None = getattr(_room, "memory", None)
    if memory is None or memory.dtype != dtype or memory.numel() < needed:
        with torch.inference_mode(False):  # memory from inference mode could not be written to outside it
            memory = _room.memory = torch.empty(needed, dtype=dtype)
    return list(memory[:needed].reshape(number, *shape))
