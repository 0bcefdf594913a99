"""TensorFlow 1's bilinear resize, which FID's published numbers are made with: no antialiasing, no half-pixel shift."""

import torch
from torch import Tensor


def tf1_bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Resize float32 images (N, C, H, W): output pixel i reads source position i·in/out, past the edge the last pixel.

    The order of operations is TensorFlow's (`resize_bilinear_op.cc`): along the rows first, then the columns. Every
    other order rounds differently.
    """
    rows = _interpolated(images, 3, width)
    return _interpolated(rows, 2, height)


def _interpolated(images: Tensor, axis: int, size: int) -> Tensor:
    """first + (second - first)·weight along one axis, without memory that is not needed: this runs for every image."""
    first, second, weight = _taps(images.shape[axis], size, images.device)
    near, far = images.index_select(axis, first), images.index_select(axis, second)
    return far.sub_(near).mul_(weight if axis == 3 else weight[:, None]).add_(near)


def _taps(size_in: int, size_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours of every output pixel, and the weight of the second."""
    scale = torch.tensor(size_in / size_out, dtype=torch.float32, device=device)
    position = torch.arange(size_out, dtype=torch.float32, device=device) * scale
    first = position.long()
    return first, (first + 1).clamp(max=size_in - 1), position - first
