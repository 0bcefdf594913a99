"""Degradations as linear operators, y = H x, and those whose singular value decomposition is cheap.

Images are float (N, C, H, W) in [-1, 1]. Noise on y is added outside: y = H x + σ_y n, with σ_y in the units of y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.common.errors import UserError

ImageShape = tuple[int, int, int]

RELATIVE_ZERO = 1e-5  # singular values below this share of the largest cannot be told from 0 in float32


class LinearOperator(nn.Module):
    """H with its adjoint and pseudo-inverse. A module, so that `.to(device)` takes its tensors along.

    `image_shape`: (C, H, W) of x. `measurement_shape`: the shape of y without the batch.
    `notes`: what the user should be told, e.g. that the image was padded.
    """

    image_shape: ImageShape
    measurement_shape: tuple[int, ...]

    def __init__(self, image_shape: Sequence[int], measurement_shape: Sequence[int]):
        super().__init__()
        self.image_shape, self.measurement_shape = check_image_shape(image_shape), tuple(measurement_shape)
        self.notes: list[str] = []

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
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
        """Refuse a measurement that this operator cannot have made."""
        if tuple(y.shape[1:]) != self.measurement_shape:
            raise UserError(
                f"the degraded image has shape {tuple(y.shape[1:])}, but this degradation of a "
                f"{self.image_shape} image gives {self.measurement_shape}"
            )


class SpectralOperator(LinearOperator):
    """H = U Σ Vᵀ, for the methods that need to see the singular values (DDRM, DDNM+).

    A subclass writes `V`, `Vt`, `U` and `Ut`. Spectral coordinates have the shape of `singulars`, after the batch;
    here that is mostly (C, H, W), with a 0 for every direction that H does not see, but such directions may also be
    left out. On the seen ones V and U have orthonormal columns.
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
        """Which spectral directions H sees."""
        return self.inverse_singulars > 0

    def V(self, coordinates: Tensor, /) -> Tensor:
        """From spectral coordinates to images."""
        raise NotImplementedError

    def Vt(self, x: Tensor, /) -> Tensor:
        """From images to spectral coordinates."""
        raise NotImplementedError

    def U(self, coordinates: Tensor, /) -> Tensor:
        """From spectral coordinates to measurements."""
        raise NotImplementedError

    def Ut(self, y: Tensor, /) -> Tensor:
        """From measurements to spectral coordinates."""
        raise NotImplementedError

    def H(self, x: Tensor) -> Tensor:
        return self.U(self.singulars * self.Vt(x))

    def Ht(self, y: Tensor) -> Tensor:
        return self.V(self.singulars * self.Ut(y))

    def H_pinv(self, y: Tensor) -> Tensor:
        return self.V(self.inverse_singulars * self.Ut(y))


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """(C, H, W) of positive whole numbers."""
    if len(image_shape) != 3 or any(int(size) != size or size < 1 for size in image_shape):
        raise UserError(f"an image shape is (channels, height, width), not {tuple(image_shape)}")
    channels, height, width = map(int, image_shape)
    return channels, height, width
