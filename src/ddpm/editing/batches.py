"""What every edit shares: images through a model, a batch at a time, each with its own noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.errors import UserError
from ddpm.hardware import Precision
from ddpm.model import Labels, Model
from ddpm.randomness import ImageNoise
from ddpm.samplers.denoiser import Clip

Work = Callable[..., Tensor]  # (denoiser, noise, images (n, C, H, W), ...) -> (n, ...)


@dataclass(frozen=True)
class Editor:
    """A model with the choices that hold for a whole edit.

    labels: a class for all images, or one an image; None leaves a class-conditional model without a class.
    guidance, clip, precision: see `Model.denoiser`. seed: image i's noise is (seed, i)'s.
    """

    model: Model
    labels: Labels = None
    guidance: float = 1.0
    clip: Clip = "static"
    seed: int = 0
    batch_size: int | None = None
    precision: Precision = "auto"

    def run(self, work: Work, images: Tensor, *more: Tensor, same_noise: bool = False) -> Tensor:
        """Apply `work` to images (N, C, H, W) in [-1, 1], and to what goes with them; answers come back on the CPU.

        same_noise: every image gets the stream of image 0.
        """
        model = self.model
        if tuple(images.shape[1:]) != model.image_shape:
            raise UserError(f"the images are {tuple(images.shape[1:])}, but this model knows {model.image_shape}")
        if not len(images):
            raise UserError("there are no images to edit")
        classes = self._classes(len(images))
        size = model.default_batch_size if self.batch_size is None else self.batch_size
        if size < 1:
            raise UserError(f"the batch size must be at least 1, not {size}")
        answers = []
        for start in range(0, len(images), size):
            indices = range(start, min(start + size, len(images)))
            denoiser = model.denoiser(
                None if classes is None else classes[start : start + size],
                guidance=self.guidance,
                clip=self.clip,
                batch_size=size,
                precision=self.precision,
            )
            streams = [0] * len(indices) if same_noise else indices
            noise = ImageNoise.of_seed(self.seed, streams, model.image_shape, device=model.device)
            batch = [part[start : start + size].to(model.device) for part in (images, *more)]
            answers.append(work(denoiser, noise, *batch).cpu())
        return torch.cat(answers)

    def _classes(self, count: int) -> Tensor | None:
        if self.labels is None:
            return None
        classes = self.model.resolve_labels(self.labels) or []
        if len(classes) not in (1, count):
            raise UserError(f"{len(classes)} labels for {count} images: give one for all, or one an image")
        return torch.tensor(classes * (count if len(classes) == 1 else 1))
