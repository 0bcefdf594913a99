"""One image on its way: read from a file and, where asked, degraded."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.hardware import Precision
from ddpm.model import Labels, Model
from ddpm.randomness import derive_seed
from ddpm.restoration.methods import check_sigma, find_method
from ddpm.restoration.noise_level import estimate_noise
from ddpm.restoration.operator import SpectralOperator
from ddpm.restoration.operators import Inpainting
from ddpm.restoration.posterior import PIXEL_SCALE
from ddpm.restoration.tasks import Task, read_picture

ROUNDING = 1 / (255 * math.sqrt(12))  # σ of what a picture's 256 levels leave out, in [0, 1] units
HARMLESS_GAIN = 50  # where H⁺ multiplies it by less, taking y as exact does at least as well
ROUNDING_NOTE = f"σ is taken as {ROUNDING:.4f}: an 8-bit picture's rounding, which undoing this blur would multiply"

OPERATORS = 4  # of so many shapes at once: each is as large as several pictures


def file_digest(path: Path) -> str:
    """Names a file's content; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()
    except OSError:
        return ""


@dataclass(frozen=True)
class Settings:
    """What `ddpm restore` is told; the fields that change a result are kept beside a folder's results."""

    task: Task
    method: str = "ddnm"
    noise: float | None = 0.0  # σ in [0, 1] units; None: estimated from each image
    degrade: bool = False
    samples: int = 1
    steps: int | None = None
    labels: Labels = None
    guidance: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    batch_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        find_method(self.method)
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {self.batch_size}")
        if self.task.name == "denoise" and self.noise == 0:
            raise UserError("denoise needs --noise: σ in units of the [0, 1] image, or auto")
        if self.noise is not None:
            check_sigma(self.noise)
            if self.noise > 1:
                given, meant = f"{self.noise:g}", f"{self.noise / 255:.3g}"
                raise UserError(f"--noise counts in units of the [0, 1] image: for {given} of 255 levels give {meant}")
        elif self.degrade:
            raise UserError("--degrade adds the noise itself: give --noise a number instead of auto")

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the note beside a folder's results; of a mask or kernel file its content too.

        Without the batch size: after running out of memory, the call goes on with a smaller one.
        """
        files = [Path(word) for word in (self.task.mask, self.task.kernel) if word and Path(word).is_file()]
        told = asdict(self)
        del told["batch_size"]
        return {**told, "files": {str(path): file_digest(path) for path in files}}


@dataclass(frozen=True)
class Item:
    """A measurement y (on the CPU) with all that is known of it, and where its results go.

    out: where its result goes, a .png. sigma: the noise of y in [0, 1] units. original: (C, H, W), only where we
    degraded it ourselves.
    """

    name: str
    out: Path
    y: Tensor
    operator: SpectralOperator
    sigma: float
    original: Tensor | None


class Reader:
    """Reads pictures as items; operators are shared between pictures of one shape, of which the newest are kept."""

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        self.operators: dict[tuple[int, int, int], SpectralOperator] = {}

    def read(self, path: Path, name: str, out: Path) -> Item:
        """A picture as the measurement it is, or spoilt first. Raises UserError where it cannot be restored."""
        settings, channels = self.settings, self.model.image_shape[0]
        grey = settings.task.name == "colorize" and not settings.degrade
        picture = read_picture(path, 1 if grey else channels, self.model.framing.background)
        shape = settings.task.restored_shape(picture.shape, channels)
        operator = self.operator(picture.shape if settings.degrade else shape, path)
        if settings.degrade:
            assert settings.noise is not None
            y = degrade(picture, operator, settings.noise, derive_seed(settings.seed, "degrade", name))
        else:
            y = seen_part(operator, picture)
        sigma = settings.noise
        if sigma is None:
            known = operator.known.cpu() if isinstance(operator, Inpainting) else None
            sigma = estimate_noise(y, known) / PIXEL_SCALE
        find_method(settings.method).check(operator, sigma)
        if not settings.degrade:
            sigma = max(sigma, rounding_noise(operator))
        return Item(name, out, y, operator, sigma, picture if settings.degrade else None)

    def operator(self, shape: Sequence[int], path: Path) -> SpectralOperator:
        """The task's operator for images (C, H, W), on the model's device."""
        _, height, width = self.model.image_shape
        if shape[1] < height or shape[2] < width:
            raise UserError(f"{path} makes {shape[1]}×{shape[2]} pixels, but this model needs {height}×{width} or more")
        key = (shape[0], shape[1], shape[2])
        if key not in self.operators:
            if len(self.operators) == OPERATORS:
                del self.operators[next(iter(self.operators))]
            self.operators[key] = self.settings.task.operator(key).to(self.model.device)
        return self.operators[key]


def degrade(image: Tensor, operator: SpectralOperator, sigma: float, seed: int) -> Tensor:
    """y = H x + σ n of one image (C, H, W) in [-1, 1], σ in [0, 1] units; y comes back on the CPU."""
    clean = operator.H(image[None].to(operator.device))[0].cpu()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return seen_part(operator, clean + PIXEL_SCALE * sigma * noise)


def rounding_noise(operator: SpectralOperator) -> float:
    """The least σ of a y read from a picture: its rounding, where H⁺ multiplies that as most blurs' does; else 0."""
    return ROUNDING if operator.inverse_singulars.max() > HARMLESS_GAIN else 0.0


def seen_part(operator: SpectralOperator, y: Tensor) -> Tensor:
    """y with its lost pixels 0, whatever stood there; other degradations lose none."""
    return y * operator.known.cpu() if isinstance(operator, Inpainting) else y
