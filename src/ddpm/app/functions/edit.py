"""Editing an upload by noising and denoising it again, and the way from one upload to another."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ddpm.app.functions.bounds import MOST_SEED, bounded
from ddpm.app.functions.classes import NO_CLASS, as_labels
from ddpm.app.functions.uploads import enlarged, read_fitted
from ddpm.editing import Editor, interpolate, sdedit
from ddpm.fidelity import SSIM_RADIUS, psnr, ssim
from ddpm.model import Model
from ddpm.pixels import to_uint8
from ddpm.viewing.frames import as_grid

MOST_STEPS, MOST_BETWEEN, ROW_SIDE = 250, 11, 900


def edit_upload(
    model: Model, source: str | None, strength: float, *, label: str = NO_CLASS, steps: int = 50, seed: int = 0
) -> tuple[Image.Image, Image.Image, str]:
    """(before, after, what was kept) of an upload noised by `strength` and denoised again (SDEdit)."""
    original = read_fitted(source, model.image_shape, framing=model.framing)[None]
    edited = sdedit(_editor(model, label, seed, 1), original, strength, steps=_steps(model, steps))
    report = f"Strength {strength:g}: PSNR {psnr(edited, original)[0]:.1f} dB to the original"
    if min(model.image_shape[1:]) > 2 * SSIM_RADIUS:
        report += f", SSIM {ssim(edited, original)[0]:.3f}"
    return enlarged(to_uint8(original[0])), enlarged(to_uint8(edited[0])), report + "."


def between(
    model: Model,
    sources: Sequence[str | None],
    depth: float,
    *,
    number: int = 7,
    label: str = NO_CLASS,
    steps: int = 50,
    seed: int = 0,
) -> Image.Image:
    """The way between two uploads, which stand at its ends: figure 8 of Ho et al. 2020."""
    first, second = (
        read_fitted(source, model.image_shape, f"the {which} upload", model.framing)
        for source, which in zip(sources, ("first", "second"), strict=True)
    )
    count = bounded("the number of images", number, 1, MOST_BETWEEN)
    weights = np.linspace(0, 1, count + 2)[1:-1].tolist()
    editor = _editor(model, label, seed, count)
    images = interpolate(editor, first, second, weights, depth=depth, steps=_steps(model, steps))
    row = torch.cat([first[None], images, second[None]])
    return enlarged(as_grid(row, len(row)), ROW_SIDE)


def _editor(model: Model, label: str, seed: int, number: int) -> Editor:
    """A forward pass is not padded beyond the images asked for."""
    return Editor(
        model,
        labels=as_labels(label),
        seed=bounded("the seed", seed, 0, MOST_SEED),
        batch_size=min(number, model.default_batch_size),
    )


def _steps(model: Model, steps: int) -> int:
    return bounded("the number of steps", steps, 1, min(MOST_STEPS, model.process.schedule.timesteps))
