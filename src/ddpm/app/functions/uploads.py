"""Uploads: read by this package's own reader, header first, and brought to the size that is wanted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.data.decode import decode, to_tensor
from ddpm.data.fit import Framing, fit
from ddpm.data.limits import BrokenFile
from ddpm.errors import UserError
from ddpm.pixels import to_float
from ddpm.restoration.tasks import marked
from ddpm.viewing.pictures import to_pillow

MOST_BYTES = 20 * 2**20  # of one upload
SHOWN_SIDE = 448  # pixels; small images are enlarged, by a whole number, towards this side
PAINTED_SHARE = 0.25  # of a pixel of the image that the brush must have covered


def read_upload(
    source: str | Path | bytes | None, channels: int, what: str = "the upload", background=255
) -> Image.Image:
    """An uploaded file as a Pillow image of 1 to 4 channels; UserError that says in one line what is wrong with it.

    The header is judged before any pixel is decoded. The first frame of an animation; alpha goes onto `background`.
    """
    if source is None:
        raise UserError(f"{what} is missing: choose an image first")
    try:
        data = source if isinstance(source, bytes) else _bytes(Path(source))
        return decode(data, channels, background, smallest=1)
    except BrokenFile as error:
        raise UserError(f"{what} cannot be used: {error}") from error
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from error


def read_fitted(
    source: str | Path | None, shape: Sequence[int], what: str = "the upload", framing: Framing | None = None
) -> Tensor:
    """An uploaded file as (C, H, W) in [-1, 1], brought to `shape` as the model's training images were."""
    channels, height, width = shape
    how, background = framing or Framing()
    image = read_upload(source, channels, what, background)
    return to_float(to_tensor(fit(image, (height, width), how, background)))


def read_mask(layers: Sequence[str | bytes], size: tuple[int, int]) -> Tensor:
    """What a mask's layers say is lost, each by the rule of `marked`, as bool (H, W) of `size`."""
    lost = torch.zeros(size, dtype=torch.bool)
    for layer in layers:
        covered = to_pillow(255 * marked(to_tensor(read_upload(layer, 2, "the mask")))[None].byte())
        share = np.asarray(covered.resize((size[1], size[0]), Image.Resampling.BOX)) / 255
        lost |= torch.from_numpy(share >= PAINTED_SHARE)
    return lost


def enlarged(pixels: Tensor, side: int = SHOWN_SIDE) -> Image.Image:
    """uint8 (C, H, W) as a picture, enlarged by a whole number towards `side`, so that its pixels stay squares."""
    image = to_pillow(pixels)
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BrokenFile(f"it is larger than {MOST_BYTES // 2**20} MB")
    return data
