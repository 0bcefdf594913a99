"""Restoring an upload: what it is spoiled by, the draws from its posterior, their mean and their spread."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ddpm.app.functions.bounds import MOST_SEED, bounded
from ddpm.app.functions.classes import NO_CLASS, as_labels
from ddpm.app.functions.live import live
from ddpm.app.functions.uploads import SHOWN_SIDE, enlarged, read_fitted
from ddpm.errors import UserError, require
from ddpm.fidelity import psnr
from ddpm.model import Model
from ddpm.pixels import to_uint8
from ddpm.randomness import derive_seed
from ddpm.restoration import Inpainting, Restored, Task, restore
from ddpm.restoration.items import ROUNDING_NOTE, degrade, rounding_noise
from ddpm.restoration.operator import SpectralOperator
from ddpm.samplers.step import Step
from ddpm.viewing.frames import as_grid

MOST_DRAWS, MOST_STEPS = 16, 250
PAINTED, RANDOM, SMALL, BLUR, NOISE, GREY = (
    "a painted part is lost",
    "random pixels are lost",
    "low resolution",
    "blur",
    "noise only",
    "colour is lost",
)


@dataclass(frozen=True)
class Damage:
    """What was done to the image. `share` of random pixels, `scale` of low resolution, `blur` in pixels, σ `noise`."""

    kind: str = PAINTED
    share: float = 0.5
    scale: int = 2
    blur: float = 1.0
    noise: float = 0.0

    def task(self) -> Task:
        """As `ddpm restore` knows it; a painted mask comes with the upload and is no task."""
        match self.kind:
            case "random pixels are lost":
                return Task("inpaint", mask=f"random:{self.share}")
            case "low resolution":
                return Task("superresolve", scale=bounded("the scale", self.scale, 2, 8))
            case "blur":
                return Task("deblur", kernel=f"gaussian:{self.blur}")
            case "noise only":
                return Task("denoise")
            case "colour is lost":
                return Task("colorize")
        raise UserError(f"no damage called {self.kind!r}; there are {', '.join((PAINTED, *KINDS))}")

    def operator(self, model: Model, lost: Tensor | None) -> SpectralOperator:
        """The degradation of this model's images; `lost` is the painted mask, bool (H, W)."""
        if self.kind != PAINTED:
            return self.task().operator(model.image_shape)
        if lost is None or not lost.any():
            raise UserError("nothing is painted: paint over what is to be restored, or choose another damage")
        return Inpainting(model.image_shape, ~lost)


KINDS = (RANDOM, SMALL, BLUR, NOISE, GREY)


@dataclass(frozen=True)
class Answer:
    """Pictures of the outcome, and its figures in words."""

    before: Image.Image
    after: Image.Image
    draws: Image.Image
    uncertainty: Image.Image
    report: str


def damages(model: Model) -> list[str]:
    """The damages that make sense for this model's images."""
    return [kind for kind in (PAINTED, *KINDS) if kind != GREY or model.image_shape[0] == 3]


def restore_upload(
    model: Model,
    source: str | None,
    lost: Tensor | None,
    damage: Damage,
    *,
    clean: bool = True,
    method: str = "ddnm",
    steps: int = 100,
    draws: int = 4,
    seed: int = 0,
    label: str = NO_CLASS,
) -> Iterator[Step | Answer]:
    """Restore an upload, brought to the model's size: yields steps as they are done, and at last the answer.

    `clean`: the upload is spoiled first, and the result compared with it; otherwise it is what is left of an image.
    """
    operator = damage.operator(model, lost)
    number = bounded("the number of draws", draws, 1, MOST_DRAWS)
    count = bounded("the number of steps", steps, 1, min(MOST_STEPS, model.process.schedule.timesteps))
    seed = bounded("the seed", seed, 0, MOST_SEED)
    y, original = _measure(model, source, operator, damage, clean, seed)
    sigma = damage.noise if clean else max(damage.noise, rounding_noise(operator))

    def work(callback) -> Answer:
        restored = restore(
            model,
            y[None],
            operator,
            method=method,
            noise=sigma,
            samples=number,
            steps=count,
            labels=as_labels(label),
            seed=seed,
            batch_size=min(number, model.default_batch_size),
            callback=callback,
        )
        found = answer(y, restored, original)
        return replace(found, report=f"{found.report} {ROUNDING_NOTE}.") if sigma > damage.noise else found

    return live(work)


def _measure(
    model: Model, source: str | None, operator: SpectralOperator, damage: Damage, clean: bool, seed: int
) -> tuple[Tensor, Tensor | None]:
    """(y, the original where it is known). An upload is brought to the size that the operator speaks of."""
    if clean:
        original = read_fitted(source, model.image_shape, framing=model.framing)
        return degrade(original, operator, damage.noise, derive_seed(seed, "degrade")), original
    y = read_fitted(source, operator.measurement_shape, framing=model.framing)
    return (y * operator.known if isinstance(operator, Inpainting) else y), None


def answer(y: Tensor, restored: Restored, original: Tensor | None) -> Answer:
    """The pictures of one restored image (the first); y (C', h, w) in [-1, 1]."""
    before = enlarged(to_uint8(y))
    after = enlarged(to_uint8(restored.mean[0]))
    mode = "RGB" if "RGB" in (before.mode, after.mode) else "L"
    before = before.convert(mode).resize(after.size, Image.Resampling.NEAREST)
    draws = restored.samples[0]
    spread = restored.std[0].mean(0)
    report = f"Mean of {len(draws)} draws." if len(draws) > 1 else "One draw; two or more show the uncertainty."
    if len(draws) > 1:
        report += f" Their standard deviation: {spread.mean():.3f} on average, {spread.max():.3f} at most."
    if original is not None:
        report += f" PSNR {psnr(restored.mean, original[None])[0]:.1f} dB"
        seen = y[None].clamp(-1, 1)  # as it is pictured, and as `ddpm restore` reports it
        report += f", before {psnr(seen, original[None])[0]:.1f} dB." if y.shape == original.shape else "."
    return Answer(before, after.convert(mode), enlarged(as_grid(draws)), heat(spread), report)


def heat(spread: Tensor) -> Image.Image:
    """A map (H, W) of standard deviations in [0, 1] units: black is none, light the largest there is."""
    colours = require("matplotlib", "app").colormaps["magma"]
    pixels = colours((spread / spread.max().clamp(min=1e-6)).numpy(), bytes=True)[..., :3]
    return enlarged(torch.from_numpy(pixels).permute(2, 0, 1), SHOWN_SIDE)
