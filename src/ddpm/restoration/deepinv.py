"""Convert to and from deepinv: its physics to our operators, our model to its denoiser.

deepinv's images are in [0, 1], ours in [-1, 1]. A linear physics is the same H for both, but the measurements differ:
y = 2·y₀₁ - H(1), see `from_deepinv_measurement`.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm.common.errors import UserError, require
from ddpm.model import Model
from ddpm.restoration.operator import LinearOperator, SpectralOperator
from ddpm.restoration.operators import CircularBlur
from ddpm.samplers.denoiser import Denoiser

ORTHOGONAL_TOLERANCE = 1e-4


class DeepinvOperator(LinearOperator):
    """A deepinv `LinearPhysics` as an operator, for DDNM without noise and for DPS."""

    def __init__(self, physics: Any, image_shape: tuple[int, int, int]):
        super().__init__(image_shape, _measurement_shape(physics, image_shape))
        self.physics = physics

    def H(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def Ht(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y)

    def H_pinv(self, y: Tensor) -> Tensor:
        return self.physics.A_dagger(y)


class DeepinvSpectral(SpectralOperator):
    """A deepinv `DecomposablePhysics` as an operator, for every method; see `from_deepinv`."""

    def __init__(self, physics: Any, image_shape: tuple[int, int, int]):
        mask = torch.as_tensor(physics.mask).detach().abs()
        super().__init__(image_shape, _measurement_shape(physics, image_shape), mask[0] if mask.ndim == 4 else mask)
        self.physics = physics

    def V(self, coordinates: Tensor) -> Tensor:
        return self.physics.V(coordinates)

    def Vt(self, x: Tensor) -> Tensor:
        return self.physics.V_adjoint(x)

    def U(self, coordinates: Tensor) -> Tensor:
        return self.physics.U(coordinates)

    def Ut(self, y: Tensor) -> Tensor:
        return self.physics.U_adjoint(y)


def from_deepinv(physics: Any, image_shape: tuple[int, int, int]) -> LinearOperator:
    """Convert a deepinv physics to an operator on images (C, H, W), with its decomposition if it has one.

    `BlurFFT` keeps half of a complex spectrum, in which white noise is not white; it becomes our own circular blur.

    Raises UserError if the physics is not linear (DPS takes `physics.A` itself), has one mask or kernel per image, or
    has a decomposition whose V is not orthonormal.
    """
    deepinv: Any = require("deepinv", "inverse")
    if isinstance(physics, deepinv.physics.LinearPhysics):
        _check_shared(physics)
    if isinstance(physics, deepinv.physics.BlurFFT):
        impulse = torch.zeros(1, *image_shape)
        impulse[..., image_shape[1] // 2, image_shape[2] // 2] = 1
        return CircularBlur(image_shape, physics.A(impulse.to(physics.mask.device))[0].cpu())
    if isinstance(physics, deepinv.physics.DecomposablePhysics):
        operator = DeepinvSpectral(physics, image_shape)
        _check_orthonormal(operator)
        return operator
    if isinstance(physics, deepinv.physics.LinearPhysics):
        return DeepinvOperator(physics, image_shape)
    raise UserError(f"{type(physics).__name__} is not a linear deepinv physics; method dps takes its A as a function")


def from_deepinv_measurement(operator: LinearOperator, y: Tensor) -> Tensor:
    """Convert y = H x₀₁ + n of images in [0, 1] to the measurement 2y - H(1) of images in [-1, 1]."""
    return 2 * y - operator.H(torch.ones(1, *operator.image_shape, device=y.device))


def as_deepinv(model: Model, **options: Any) -> torch.nn.Module:
    """Convert the model to a `deepinv.models.Denoiser`: (x + σ n, σ) -> x̂, σ a number or one per image.

    Images are in [0, 1]. options: for `Model.denoiser` (labels, guidance, precision, …). A σ outside the schedule is
    moved to its nearest end.
    """
    return denoiser_as_deepinv(model.denoiser(**options), model.device)


def denoiser_as_deepinv(denoiser: Denoiser, device: torch.device | None = None) -> torch.nn.Module:
    """Convert any `Denoiser` to deepinv's: x + σ n is x_t/√ᾱ_t at the t with √((1-ᾱ_t)/ᾱ_t) = 2σ, on our scale.

    device: where to compute; default: the device of the images. Results are on the device of the images.
    """
    deepinv: Any = require("deepinv", "inverse")

    class DiffusionDenoiser(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
            levels = torch.as_tensor(sigma, dtype=torch.float64).flatten().tolist()
            size = len(x) if len(levels) == 1 else 1  # how many images have one σ
            labels: Sequence[Tensor | None] = [None] * len(levels)
            if denoiser.labels is not None:
                labels = denoiser.labels.expand(len(x)).split(size)
            parts = zip(x.to(device=device).split(size), levels, labels, strict=True)
            return torch.cat([_denoise(denoiser, *part) for part in parts]).to(x.device)

    return DiffusionDenoiser()


def _denoise(denoiser: Denoiser, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    """Denoise images (N, C, H, W) in [0, 1] of one σ, each with its label (N,), if there are labels."""
    if sigma <= 0:
        return x
    denoiser = copy.copy(denoiser)
    denoiser.labels = labels
    t = denoiser.schedule.t_from_log_snr(-2 * math.log(2 * sigma))
    signal, _ = denoiser.schedule.alpha_sigma(t)
    return (denoiser(signal * (2 * x - 1), t).x_0 + 1) / 2


def _measurement_shape(physics: Any, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    device = next((buffer.device for buffer in physics.buffers()), torch.device("cpu"))
    return tuple(physics.A(torch.zeros(1, *image_shape, device=device)).shape[1:])


def _check_shared(physics: Any) -> None:
    """Raise UserError if the physics has several masks or kernels: `restore` takes one operator for all images."""
    parameters = {**dict(physics.named_buffers()), **dict(physics.named_parameters())}
    for name, value in parameters.items():
        if name in ("mask", "filter") and value.ndim >= 4 and len(value) > 1:
            kind = type(physics).__name__
            raise UserError(
                f"this {kind} has {len(value)} values of {name}, one per image: make one {kind} for each image, and "
                "restore the images one by one"
            )


def _check_orthonormal(operator: DeepinvSpectral) -> None:
    """Raise UserError unless VᵀV = 1 on the coordinates that H sees, so that white noise stays white."""
    probe = torch.randn(2, *operator.image_shape, generator=torch.Generator().manual_seed(0))
    inside = operator.Vt(probe.to(operator.singulars.device)) * operator.seen
    back = operator.Vt(operator.V(inside)) * operator.seen
    lengths = operator.V(inside).flatten(1).norm(dim=1) / inside.flatten(1).norm(dim=1)
    if not torch.allclose(back, inside, atol=ORTHOGONAL_TOLERANCE) or (lengths - 1).abs().max() > ORTHOGONAL_TOLERANCE:
        raise UserError(
            f"the decomposition of {type(operator.physics).__name__} is not orthonormal, so its noise differs "
            "between directions; use ddnm without noise, or dps"
        )
