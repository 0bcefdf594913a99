"""The U-Net of improved- and guided-diffusion, written independently from its description, with its state's names.

Guided diffusion: Dhariwal & Nichol 2021, appendix; names and order of operations as in the published checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, inputs, outputs, embedding, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs * (1 + scale_shift)))
        convolution = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.1), convolution)
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, embedding):
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = F.interpolate(x, scale_factor=2), F.interpolate(h, scale_factor=2)
        h = self.in_layers[2](h)
        condition = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + condition)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, embedding):
        n, channels, *sides = x.shape
        flat = x.reshape(n, channels, -1)
        qkv = self.qkv(self.norm(flat))
        width = channels // self.heads
        if self.new_order:  # all of q, all of k, all of v, and each of them head by head
            q, k, v = (part.reshape(n, self.heads, width, -1) for part in qkv.split(channels, dim=1))
        else:  # head by head, and of each head q, k, v
            q, k, v = qkv.reshape(n, self.heads, 3, width, -1).unbind(dim=2)
        weights = torch.softmax(torch.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(width), dim=-1)
        h = torch.einsum("nhts,nhcs->nhct", weights, v).reshape(n, channels, -1)
        return (flat + self.proj_out(h)).reshape(n, channels, *sides)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, embedding):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, embedding):
        return self.conv(F.interpolate(x, scale_factor=2))


class Plain(nn.Conv2d):
    def forward(self, x, embedding):
        return super().forward(x)


class GuidedUNet(nn.Module):
    """The network that their flags describe; `attention` lists down-sampling factors."""

    def __init__(
        self,
        *,
        channels=32,
        channel_mult=(1, 2),
        blocks=1,
        attention=(2,),
        out_channels=3,
        num_classes=None,
        num_heads=1,
        num_head_channels=-1,
        scale_shift=True,
        resblock_updown=False,
        new_order=False,
    ):
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        embedding = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, embedding)

        def residual(inputs, outputs, resample=None):
            return Residual(inputs, outputs, embedding, scale_shift, resample)

        def attend(width):
            return Attention(width, num_heads if num_head_channels == -1 else width // num_head_channels, new_order)

        def resample(width, way):
            return residual(width, width, way) if resblock_updown else {"down": Down, "up": Up}[way](width)

        widths = [int(channels * multiple) for multiple in channel_mult]
        width, skips = widths[0], [widths[0]]
        self.input_blocks = nn.ModuleList([nn.ModuleList([Plain(3, width, 3, padding=1)])])
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                attended = [attend(outputs)] if 2**level in attention else []
                self.input_blocks.append(nn.ModuleList([residual(width, outputs), *attended]))
                width = outputs
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([resample(width, "down")]))
                skips.append(width)
        self.middle_block = nn.ModuleList([residual(width, width), attend(width), residual(width, width)])
        self.output_blocks = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            for index in range(blocks + 1):
                parts = [residual(width + skips.pop(), outputs)]
                parts += [attend(outputs)] if 2**level in attention else []
                parts += [resample(outputs, "up")] if level and index == blocks else []
                self.output_blocks.append(nn.ModuleList(parts))
                width = outputs
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        half = self.channels // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        h, skips = x, []
        for block in self.input_blocks:
            for layer in block:
                h = layer(h, embedding)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, embedding)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, embedding)
        return self.out(h)
