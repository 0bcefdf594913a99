"""Degradations as linear operators, y = H x, with or without a cheap singular value decomposition.

Images are float (N, C, H, W) in [-1, 1]. Noise is not part of an operator: y = H x + σ_y n, with σ_y in y's units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.common.errors import UserError

ImageShape = tuple[int, int, int]

RELATIVE_ZERO = 1e-5  # of the largest singular value: smaller ones cannot be distinguished from 0 in float32


class LinearOperator(nn.Module):
    """H with its adjoint and pseudo-inverse. A module, so that `.to(device)` moves its tensors.

    Attributes:
        image_shape: (C, H, W) of x.
        measurement_shape: shape of y without the batch.
        notes: messages for the user, e.g. that the image was padded.
    """

    image_shape: ImageShape
    measurement_shape: tuple[int, ...]

    def __init__(self, image_shape: Sequence[int], measurement_shape: Sequence[int]):
        super().__init__()
        self.image_shape, self.measurement_shape = check_image_shape(image_shape), tuple(measurement_shape)
        self.notes: list[str] = []

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return next((tensor.device for tensor in self.buffers()), torch.device("cpu"))

    def H(self, x: Tensor) -> Tensor:
        """H x, (N, *measurement_shape)."""
        raise NotImplementedError

    def Ht(self, y: Tensor) -> Tensor:
        """Hᵀ y, (N, C, H, W)."""
        raise NotImplementedError

    def H_pinv(self, y: Tensor) -> Tensor:
        """The Moore-Penrose pseudo-inverse H⁺ y, (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.H(x)

    def check(self, y: Tensor) -> None:
        """Raise UserError if y (N, ...) does not have the measurement's shape."""
        if tuple(y.shape[1:]) != self.measurement_shape:
            raise UserError(
                f"the degraded image has shape {tuple(y.shape[1:])}, but this degradation of a "
                f"{self.image_shape} image gives {self.measurement_shape}"
            )


class SpectralOperator(LinearOperator):
    """H = U Σ Vᵀ, for the methods that need the singular values (DDRM, DDNM+).

    A subclass defines `V`, `Vt`, `U` and `Ut`. Spectral coordinates have the batch and then the shape of `singulars`,
    mostly (C, H, W). Directions that H does not see have the singular value 0 or are left out. On the others, V and U
    have orthonormal columns.
    """

    singulars: Tensor
    inverse_singulars: Tensor

    def __init__(self, image_shape: Sequence[int], measurement_shape: Sequence[int], singulars: Tensor):
        super().__init__(image_shape, measurement_shape)
        singulars = singulars.to(torch.float64)
        inverse = torch.where(singulars > RELATIVE_ZERO * singulars.max(), 1 / singulars, 0.0)
        self.register_buffer("singulars", singulars.float().contiguous())
        self.register_buffer("inverse_singulars", inverse.float().contiguous())

    @property
    def seen(self) -> Tensor:
        """Mask of the spectral directions that H sees, bool."""
        return self.inverse_singulars > 0

    def V(self, coordinates: Tensor, /) -> Tensor:
        """Map spectral coordinates to images (N, C, H, W)."""
        raise NotImplementedError

    def Vt(self, x: Tensor, /) -> Tensor:
        """Map images (N, C, H, W) to spectral coordinates."""
        raise NotImplementedError

    def U(self, coordinates: Tensor, /) -> Tensor:
        """Map spectral coordinates to measurements (N, *measurement_shape)."""
        raise NotImplementedError

    def Ut(self, y: Tensor, /) -> Tensor:
        """Map measurements (N, *measurement_shape) to spectral coordinates."""
        raise NotImplementedError

    def H(self, x: Tensor) -> Tensor:
        return self.U(self.singulars * self.Vt(x))

    def Ht(self, y: Tensor) -> Tensor:
        return self.V(self.singulars * self.Ut(y))

    def H_pinv(self, y: Tensor) -> Tensor:
        return self.V(self.inverse_singulars * self.Ut(y))


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """Return (C, H, W) as ints; UserError unless they are three positive whole numbers."""
    if len(image_shape) != 3 or any(int(size) != size or size < 1 for size in image_shape):
        raise UserError(f"an image shape is (channels, height, width), not {tuple(image_shape)}")
    channels, height, width = map(int, image_shape)
    return channels, height, width
