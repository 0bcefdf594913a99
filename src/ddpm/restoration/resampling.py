"""One-dimensional matrices, and the separable degradations made of them: super-resolution and separable blurs."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.restoration.operator import check_image_shape
from ddpm.restoration.operators import Separable, check_kernel

Filter = Literal["average", "bicubic"]


def superresolution(image_shape: Sequence[int], scale: int, filter: Filter = "average") -> Separable:
    """The large image made `scale` times smaller, by block averages or bicubically (antialiased, as Pillow does).

    A side that `scale` does not divide is padded at its end with its last pixel; `notes` says so.
    """
    channels, height, width = check_image_shape(image_shape)
    if int(scale) != scale or scale < 2 or scale > min(height, width):
        raise UserError(f"the scale must be a whole number from 2 to {min(height, width)} for this image, not {scale}")
    make = {"average": block_average, "bicubic": bicubic}.get(filter)
    if make is None:
        raise UserError(f"no super-resolution filter named {filter!r}; there are average and bicubic")
    sides = [(size, -(-size // scale) * scale) for size in (height, width)]  # as it is, and padded
    rows, columns = (make(full, scale) @ edge_padding(size, full) for size, full in sides)
    operator = Separable((channels, height, width), rows, columns)
    if any(size != full for size, full in sides):
        padded = f"{sides[0][1]}×{sides[1][1]}"
        operator.notes.append(f"{height}×{width} is not divisible by {scale}: edge pixels were repeated up to {padded}")
    return operator


def separable_blur(image_shape: Sequence[int], column_kernel: Tensor, row_kernel: Tensor) -> Separable:
    """A blur by a kernel down the columns and one along the rows, the image continued by its mirror image."""
    _, height, width = check_image_shape(image_shape)
    check_kernel(column_kernel[:, None], (height, width))
    check_kernel(row_kernel[None, :], (height, width))
    return Separable(image_shape, mirrored_blur(height, column_kernel), mirrored_blur(width, row_kernel))


def edge_padding(size: int, padded: int) -> Tensor:
    """(padded, size): the identity, its last row repeated."""
    return torch.eye(size, dtype=torch.float64)[torch.arange(padded).clamp(max=size - 1)]


def block_average(size: int, scale: int) -> Tensor:
    """(size/scale, size): the mean of every block."""
    return torch.eye(size // scale, dtype=torch.float64).repeat_interleave(scale, dim=1) / scale


def bicubic(size: int, scale: int) -> Tensor:
    """(size/scale, size): Keys' cubic with a = -1/2, widened by `scale` and cut off at the borders, as in Pillow."""
    centres = (torch.arange(size // scale, dtype=torch.float64) + 0.5) * scale
    positions = torch.arange(size, dtype=torch.float64) + 0.5
    distance = (positions - centres[:, None]).abs() / scale
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def mirrored_blur(size: int, kernel: Tensor) -> Tensor:
    """(size, size): convolution with an odd or even kernel, its middle at len//2; the border pixel is mirrored too."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    positions = torch.arange(size)
    for tap, weight in enumerate(kernel.tolist()):
        source = positions - (tap - len(kernel) // 2)
        source = torch.where(source < 0, -1 - source, source)
        source = torch.where(source >= size, 2 * size - 1 - source, source)
        matrix[positions, source] += weight
    return matrix
