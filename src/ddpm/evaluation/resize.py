"""TensorFlow 1's bilinear resize, which FID's published numbers are made with: no antialiasing, no half-pixel shift."""

import torch
from torch import Tensor


def tf1_bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Resize float32 images (N, C, H, W): output pixel i reads source position i·in/out, past the edge the last pixel.

    The order of operations is TensorFlow's (`resize_bilinear_op.cc`): along the rows first, then the columns. Every
    other order rounds differently.
    """
    left, right, across = _taps(images.shape[3], width, images.device)
    rows = images[..., left]
    rows = rows + (images[..., right] - rows) * across
    top, bottom, down = _taps(images.shape[2], height, images.device)
    upper = rows[:, :, top]
    return upper + (rows[:, :, bottom] - upper) * down[:, None]


def _taps(size_in: int, size_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours of every output pixel, and the weight of the second."""
    scale = torch.tensor(size_in / size_out, dtype=torch.float32, device=device)
    position = torch.arange(size_out, dtype=torch.float32, device=device) * scale
    first = position.long()
    return first, (first + 1).clamp(max=size_in - 1), position - first
