"""Degradation operators: each is an orthogonal change of basis with singular values."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.common.pixels import LUMA
from ddpm.common.randomness import derive_seed
from ddpm.data.images import read_image
from ddpm.restoration.operator import SpectralOperator, check_image_shape

LARGEST = 1_001  # pixels on a kernel's side: refused before it is built; whether it fits the image is checked later
GAUSSIAN_REACH = 3.0  # standard deviations on each side; the rest has 0.3% of the weight


def gaussian(sigma: float) -> Tensor:
    """One-dimensional Gaussian kernel of standard deviation `sigma` pixels, cut off at 3σ; it sums to 1."""
    widest = (LARGEST // 2) / GAUSSIAN_REACH
    if not 0 < sigma <= widest:
        raise UserError(f"a Gaussian kernel needs a width above 0 and up to {widest:.0f} pixels, not {sigma}")
    reach = max(1, math.ceil(GAUSSIAN_REACH * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


def box(size: float) -> Tensor:
    """One-dimensional kernel for the mean of `size` pixels, a whole number."""
    if not 1 <= size <= LARGEST or size != int(size):
        raise UserError(f"a box kernel needs a whole number of pixels from 1 to {LARGEST}, not {size:g}")
    return torch.full((int(size),), 1 / size, dtype=torch.float64)


def motion(length: float, degrees: float = 0.0) -> Tensor:
    """Square kernel of a straight camera movement over `length` pixels, `degrees` anticlockwise from the horizontal."""
    if not 1 <= length < LARGEST:
        raise UserError(f"a motion kernel needs a length from 1 to {LARGEST - 1} pixels, not {length:g}")
    reach = math.ceil(length / 2)
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    points = torch.linspace(-(length - 1) / 2, (length - 1) / 2, max(2, 16 * math.ceil(length)), dtype=torch.float64)
    x = reach + points * math.cos(math.radians(degrees))
    y = reach - points * math.sin(math.radians(degrees))
    x_low, y_low = x.floor(), y.floor()
    for dx in (0, 1):  # bilinear: each point of the path is spread over the four pixels around it
        for dy in (0, 1):
            weight = (1 - (x - x_low - dx).abs()) * (1 - (y - y_low - dy).abs())
            rows = (y_low.long() + dy).clamp(max=2 * reach)
            columns = (x_low.long() + dx).clamp(max=2 * reach)
            kernel.index_put_((rows, columns), weight, accumulate=True)
    return kernel / kernel.sum()


def from_file(path: str | Path) -> Tensor:
    """Read a kernel (h, w) from a grey picture (transparent pixels are 0) or an .npy matrix; scaled to sum to 1."""
    path = user_path(path)
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


class Denoising(SpectralOperator):
    """H = identity: the image is only noisy."""

    def __init__(self, image_shape: Sequence[int]):
        super().__init__(image_shape, image_shape, torch.ones(check_image_shape(image_shape)))

    def V(self, coordinates: Tensor) -> Tensor:
        return coordinates

    Vt = U = Ut = V


class Inpainting(SpectralOperator):
    """Keep the known pixels; y has the image's shape, with 0 at the lost ones.

    known: bool (H, W) for all channels, or (C, H, W). Raises UserError if no pixel is known.
    """

    def __init__(self, image_shape: Sequence[int], known: Tensor):
        shape = check_image_shape(image_shape)
        if tuple(known.shape) not in (shape, shape[1:]):
            raise UserError(f"the mask is {_size(known.shape)}, the image {_size(shape)}: they must agree")
        known = known.bool().expand(shape)
        if not known.any():
            raise UserError("the mask leaves no pixel known: there is nothing to restore the image from")
        super().__init__(shape, shape, known.double())

    @property
    def known(self) -> Tensor:
        """Mask of the known pixels, bool (C, H, W)."""
        return self.singulars > 0

    @classmethod
    def random(cls, image_shape: Sequence[int], lost: float, seed: int = 0) -> "Inpainting":
        """Lose each pixel with probability `lost`, in all channels at once; `seed` is any whole number."""
        if not 0 < lost < 1:
            raise UserError(f"the fraction of pixels lost must be between 0 and 1, not {lost}")
        _, height, width = check_image_shape(image_shape)
        generator = torch.Generator().manual_seed(derive_seed(seed, "lost pixels"))
        return cls(image_shape, torch.rand(height, width, generator=generator) >= lost)

    def V(self, coordinates: Tensor) -> Tensor:
        return coordinates

    Vt = U = Ut = V


class CircularBlur(SpectralOperator):
    """Convolve with any kernel (h, w), or one kernel per channel (C, h, w); the image is continued periodically.

    V is the Hartley transform, Re F - Im F: unlike the Fourier transform it is real, and it is orthogonal and its own
    inverse. It diagonalises HᵀH, because the symbol |k̂|² of HᵀH is even. The rest of H is its phase k̂/|k̂|, a real
    orthogonal convolution, so U = phase · V.
    """

    phase: Tensor

    def __init__(self, image_shape: Sequence[int], kernel: Tensor):
        channels, height, width = check_image_shape(image_shape)
        for one in kernel.unbind() if kernel.ndim == 3 else [kernel]:
            check_kernel(one, (height, width))
        rows, columns = kernel.shape[-2:]
        padded = torch.zeros(*kernel.shape[:-2], height, width, dtype=torch.float64)
        padded[..., :rows, :columns] = kernel
        symbol = torch.fft.fft2(padded.roll((-(rows // 2), -(columns // 2)), (-2, -1)))
        gain = symbol.abs()
        super().__init__(image_shape, image_shape, gain.expand(channels, height, width))
        # if the gain is only rounding error, its phase need not be Hermitian; any phase is right there, so take 1
        phase = torch.where(gain > 1e-12 * gain.max(), symbol / gain, torch.ones_like(symbol))
        # as real numbers, because `.to(dtype)` would drop the imaginary part of a complex buffer
        self.register_buffer("phase", torch.view_as_real(phase).float())

    def V(self, coordinates: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(coordinates, norm="ortho")
        return spectrum.real - spectrum.imag

    Vt = V

    def U(self, coordinates: Tensor) -> Tensor:
        return self._filter(self.V(coordinates), torch.view_as_complex(self.phase))

    def Ut(self, y: Tensor) -> Tensor:
        return self.Vt(self._filter(y, torch.view_as_complex(self.phase).conj()))

    @staticmethod
    def _filter(images: Tensor, symbol: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(images) * symbol).real


class Separable(SpectralOperator):
    """Y = A X Bᵀ in each channel: super-resolution and separable blurs, with any boundary.

    rows: A (h, H). columns: B (w, W). Each singular value is the product of one of A's and one of B's.
    """

    ur: Tensor
    vr: Tensor
    uc: Tensor
    vc: Tensor

    def __init__(self, image_shape: Sequence[int], rows: Tensor, columns: Tensor):
        channels, height, width = check_image_shape(image_shape)
        if rows.shape[1] != height or columns.shape[1] != width:
            raise UserError(
                f"matrices for {rows.shape[1]}×{columns.shape[1]} images, but the image is {height}×{width}"
            )
        u_rows, s_rows, v_rows = padded_svd(rows)
        u_columns, s_columns, v_columns = padded_svd(columns)
        singulars = torch.outer(s_rows, s_columns).expand(channels, height, width)
        super().__init__(image_shape, (channels, len(rows), len(columns)), singulars)
        for name, matrix in {"ur": u_rows, "vr": v_rows, "uc": u_columns, "vc": v_columns}.items():
            self.register_buffer(name, matrix.float())

    def V(self, coordinates: Tensor) -> Tensor:
        return self.vr @ coordinates @ self.vc.T

    def Vt(self, x: Tensor) -> Tensor:
        return self.vr.T @ x @ self.vc

    def U(self, coordinates: Tensor) -> Tensor:
        return self.ur @ coordinates @ self.uc.T

    def Ut(self, y: Tensor) -> Tensor:
        return self.ur.T @ y @ self.uc


class Channels(SpectralOperator):
    """Apply a matrix (m, C) to the channels of each pixel. `Channels.grey` is the degradation of colourisation."""

    u: Tensor
    v: Tensor

    def __init__(self, image_shape: Sequence[int], matrix: Tensor):
        channels, height, width = check_image_shape(image_shape)
        if matrix.ndim != 2 or matrix.shape[1] != channels:
            raise UserError(f"the channel matrix must have {channels} columns, but its shape is {tuple(matrix.shape)}")
        u, singulars, v = padded_svd(matrix)
        super().__init__(image_shape, (len(matrix), height, width), singulars[:, None, None].expand(image_shape))
        self.register_buffer("u", u.float())
        self.register_buffer("v", v.float())

    @classmethod
    def grey(cls, image_shape: Sequence[int]) -> "Channels":
        """The grey value of a colour image, as in Pillow."""
        if image_shape[0] != 3:
            raise UserError(f"colourisation needs a model of colour images; this one has {image_shape[0]} channels")
        return cls(image_shape, torch.tensor([LUMA]))

    def V(self, coordinates: Tensor) -> Tensor:
        return mix(self.v, coordinates)

    def Vt(self, x: Tensor) -> Tensor:
        return mix(self.v.T, x)

    def U(self, coordinates: Tensor) -> Tensor:
        return mix(self.u, coordinates)

    def Ut(self, y: Tensor) -> Tensor:
        return mix(self.u.T, y)


class WalshHadamard(SpectralOperator):
    """Compressed sensing: `count` random Walsh-Hadamard coefficients of each channel, y (C, count).

    The pixels are shuffled first. The transform needs a power of two, so the shuffled pixels are split into blocks of
    such lengths (784 = 512 + 256 + 16), each with its own transform. `seed` is any whole number.
    """

    order: Tensor
    inverse_order: Tensor
    rows: Tensor

    def __init__(self, image_shape: Sequence[int], count: int, seed: int = 0):
        channels, height, width = check_image_shape(image_shape)
        pixels = height * width
        if not 1 <= count <= pixels:
            raise UserError(
                f"the number of measurements must be from 1 to {pixels}, the pixels of the image, not {count}"
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, "hadamard"))
        order = torch.randperm(pixels, generator=generator)
        rows = torch.randperm(pixels, generator=generator)[:count].sort().values
        singulars = torch.zeros(pixels).index_fill(0, rows, 1.0)
        super().__init__(image_shape, (channels, count), singulars.reshape(height, width).expand(image_shape))
        self.lengths = [1 << bit for bit in reversed(range(pixels.bit_length())) if pixels >> bit & 1]
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self.register_buffer("rows", rows)

    def V(self, coordinates: Tensor) -> Tensor:
        shuffled = self._transform(coordinates.flatten(2))
        return shuffled[..., self.inverse_order].unflatten(2, self.image_shape[1:])

    def Vt(self, x: Tensor) -> Tensor:
        return self._transform(x.flatten(2)[..., self.order]).unflatten(2, self.image_shape[1:])

    def U(self, coordinates: Tensor) -> Tensor:
        return coordinates.flatten(2)[..., self.rows]

    def Ut(self, y: Tensor) -> Tensor:
        spread = y.new_zeros(*y.shape[:2], math.prod(self.image_shape[1:]))
        spread[..., self.rows] = y
        return spread.unflatten(2, self.image_shape[1:])

    def _transform(self, pixels: Tensor) -> Tensor:
        return torch.cat([hadamard(block) for block in pixels.split(self.lengths, dim=-1)], dim=-1)


class Dense(SpectralOperator):
    """Apply any matrix (m, n) to the flattened image, n = C·H·W. Takes O(n³) time once and keeps O(n²) numbers."""

    u: Tensor
    v: Tensor

    def __init__(self, image_shape: Sequence[int], matrix: Tensor):
        shape = check_image_shape(image_shape)
        if matrix.ndim != 2 or matrix.shape[1] != math.prod(shape):
            raise UserError(f"the matrix must have {math.prod(shape)} columns, but its shape is {tuple(matrix.shape)}")
        u, singulars, v = padded_svd(matrix)
        super().__init__(shape, (len(matrix),), singulars.reshape(shape))
        self.register_buffer("u", u.float())
        self.register_buffer("v", v.float())

    def V(self, coordinates: Tensor) -> Tensor:
        return (coordinates.flatten(1) @ self.v.T).unflatten(1, self.image_shape)

    def Vt(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.v).unflatten(1, self.image_shape)

    def U(self, coordinates: Tensor) -> Tensor:
        return coordinates.flatten(1) @ self.u.T

    def Ut(self, y: Tensor) -> Tensor:
        return (y @ self.u).unflatten(1, self.image_shape)


def padded_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, n), Σ (n,) and V (n, n) of a matrix (m, n), float64; U and Σ are padded with zeros if m < n."""
    m, n = matrix.shape
    u, singulars, vt = torch.linalg.svd(matrix.double(), full_matrices=True)
    rank = min(m, n)
    padded_u, padded_s = u.new_zeros(m, n), u.new_zeros(n)
    padded_u[:, :rank], padded_s[:rank] = u[:, :rank], singulars[:rank]
    return padded_u, padded_s, vt.T.contiguous()


def mix(matrix: Tensor, images: Tensor) -> Tensor:
    """Apply a matrix (m, C) to the channels of each pixel."""
    return torch.einsum("oc,nchw->nohw", matrix, images)


def hadamard(values: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of the last axis, whose length is a power of two; it is its own inverse."""
    length, step = values.shape[-1], 1
    while step < length:
        pairs = values.unflatten(-1, (-1, 2, step))
        first, second = pairs.unbind(-2)
        values = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        step *= 2
    return values / math.sqrt(length)


def check_kernel(kernel: Tensor, image_size: Sequence[int]) -> None:
    """Raise UserError unless the kernel (h, w) is finite, not all 0 and no larger than the image."""
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise UserError(f"a blur kernel is a matrix (height, width), not of shape {tuple(kernel.shape)}")
    if not bool(torch.isfinite(kernel).all()) or not bool(kernel.any()):
        raise UserError("the blur kernel must hold finite numbers that are not all 0")
    if kernel.shape[0] > image_size[0] or kernel.shape[1] > image_size[1]:
        raise UserError(f"the kernel, {_size(kernel.shape)}, is larger than the image, {_size(image_size)}")


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


Filter = Literal["average", "bicubic"]


def superresolution(image_shape: Sequence[int], scale: int, filter: Filter = "average") -> Separable:
    """Reduce an image `scale` times, by block averages or bicubically (antialiased, as in Pillow).

    A side that `scale` does not divide is padded at its end by repeating the last pixel, and `notes` says so.
    """
    channels, height, width = check_image_shape(image_shape)
    if int(scale) != scale or scale < 2 or scale > min(height, width):
        raise UserError(f"the scale must be a whole number from 2 to {min(height, width)} for this image, not {scale}")
    make = {"average": block_average, "bicubic": bicubic}.get(filter)
    if make is None:
        raise UserError(f"no super-resolution filter named {filter!r}; there are average and bicubic")
    sides = [(size, -(-size // scale) * scale) for size in (height, width)]  # size, padded size
    rows, columns = (make(full, scale) @ edge_padding(size, full) for size, full in sides)
    operator = Separable((channels, height, width), rows, columns)
    if any(size != full for size, full in sides):
        padded = f"{sides[0][1]}×{sides[1][1]}"
        operator.notes.append(f"{height}×{width} is not divisible by {scale}: edge pixels were repeated up to {padded}")
    return operator


def separable_blur(image_shape: Sequence[int], column_kernel: Tensor, row_kernel: Tensor) -> Separable:
    """Blur with one kernel along the columns and one along the rows; the image is continued by its mirror image."""
    _, height, width = check_image_shape(image_shape)
    check_kernel(column_kernel[:, None], (height, width))
    check_kernel(row_kernel[None, :], (height, width))
    return Separable(image_shape, mirrored_blur(height, column_kernel), mirrored_blur(width, row_kernel))


def edge_padding(size: int, padded: int) -> Tensor:
    """(padded, size): the identity with its last row repeated."""
    return torch.eye(size, dtype=torch.float64)[torch.arange(padded).clamp(max=size - 1)]


def block_average(size: int, scale: int) -> Tensor:
    """(size/scale, size): the mean of each block."""
    return torch.eye(size // scale, dtype=torch.float64).repeat_interleave(scale, dim=1) / scale


def bicubic(size: int, scale: int) -> Tensor:
    """(size/scale, size): Keys' cubic kernel (a = -1/2), stretched by `scale`, cut off at the borders, as in Pillow."""
    centres = (torch.arange(size // scale, dtype=torch.float64) + 0.5) * scale
    positions = torch.arange(size, dtype=torch.float64) + 0.5
    distance = (positions - centres[:, None]).abs() / scale
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def mirrored_blur(size: int, kernel: Tensor) -> Tensor:
    """(size, size): convolution with a kernel centred at len//2, odd or even; the mirror includes the border pixel."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    positions = torch.arange(size)
    for tap, weight in enumerate(kernel.tolist()):
        source = positions - (tap - len(kernel) // 2)
        source = torch.where(source < 0, -1 - source, source)
        source = torch.where(source >= size, 2 * size - 1 - source, source)
        matrix[positions, source] += weight
    return matrix
