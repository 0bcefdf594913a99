"""Between pixels as they are stored, uint8 in 0..255, and as the process sees them, float in [-1, 1]."""

import torch
from torch import Tensor


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 0..255 to x/127.5 - 1, exactly the levels that the discretised likelihood expects."""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] to round(127.5·(x+1)), clipped to 0..255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
