"""Group normalisation with its conditioning and SiLU, as one operation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """y = silu(norm(x + added) · (1 + scale) + shift), each part but the norm optional.

    Statistics and the affine map are float32 whatever x is (Wu & He 2018; the U-Net's two uses of it are
    Ho et al.'s "norm, nonlinearity" and Dhariwal & Nichol's AdaGN).
    """

    def __init__(self, groups: int, channels: int, eps: float, silu: bool = True):
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(
        self, x: Tensor, added: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """x (N, C, H, W); added, scale, shift (N, C) in float32. Returns x's shape and dtype."""
        exact = torch.promote_types(x.dtype, torch.float32)
        h = x.to(exact)
        if added is not None:
            h = h + added[:, :, None, None]
        h = F.group_norm(h, self.num_groups, self.weight.to(exact), self.bias.to(exact), self.eps)
        if scale is not None and shift is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return (F.silu(h) if self.silu else h).to(x.dtype)
