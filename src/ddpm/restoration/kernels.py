"""Blur kernels: matrices whose numbers sum to 1, so that a flat image stays as it is."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.data.decode import read_image
from ddpm.errors import UserError

LARGEST = 1_001  # pixels on a side of a kernel; whether it fits the image is seen later, but nothing larger is made
GAUSSIAN_REACH = 3.0  # standard deviations on each side; what lies outside weighs 0.3%


def gaussian(sigma: float) -> Tensor:
    """A one-dimensional Gaussian of standard deviation `sigma` pixels, cut off at 3σ."""
    widest = (LARGEST // 2) / GAUSSIAN_REACH
    if not 0 < sigma <= widest:
        raise UserError(f"a Gaussian kernel needs a width above 0 and up to {widest:.0f} pixels, not {sigma}")
    reach = max(1, math.ceil(GAUSSIAN_REACH * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


def box(size: float) -> Tensor:
    """The mean of `size` neighbours, a whole number, one-dimensional."""
    if not 1 <= size <= LARGEST or size != int(size):
        raise UserError(f"a box kernel needs a whole number of pixels from 1 to {LARGEST}, not {size:g}")
    return torch.full((int(size),), 1 / size, dtype=torch.float64)


def motion(length: float, degrees: float = 0.0) -> Tensor:
    """A straight camera movement of `length` pixels, `degrees` anticlockwise from the horizontal: a square matrix."""
    if not 1 <= length < LARGEST:
        raise UserError(f"a motion kernel needs a length from 1 to {LARGEST - 1} pixels, not {length:g}")
    reach = math.ceil(length / 2)
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    samples = torch.linspace(-(length - 1) / 2, (length - 1) / 2, max(2, 16 * math.ceil(length)), dtype=torch.float64)
    x = reach + samples * math.cos(math.radians(degrees))
    y = reach - samples * math.sin(math.radians(degrees))
    x_low, y_low = x.floor(), y.floor()
    for dx in (0, 1):  # each sample of the path is shared by the four pixels around it
        for dy in (0, 1):
            weight = (1 - (x - x_low - dx).abs()) * (1 - (y - y_low - dy).abs())
            rows = (y_low.long() + dy).clamp(max=2 * reach)
            columns = (x_low.long() + dx).clamp(max=2 * reach)
            kernel.index_put_((rows, columns), weight, accumulate=True)
    return kernel / kernel.sum()


def from_file(path: str | Path) -> Tensor:
    """A kernel from a grey picture, 0 where it is transparent, or an .npy matrix, scaled to sum to 1."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no kernel file {path}; or give gaussian:SIGMA, box:SIZE or motion:LENGTH:DEGREES")
    if path.suffix == ".npy":
        try:
            values = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"cannot read the kernel {path}: {error}") from error
    else:
        values = read_image(path, channels=1, background=0, smallest=1)[0].double()
    total = values.sum()
    if values.ndim != 2 or not torch.isfinite(total) or total.abs() < 1e-12:
        raise UserError(f"the kernel {path} must be a finite matrix whose sum is not 0")
    return values / total
