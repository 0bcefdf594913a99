"""What a visitor or a program sends: pictures and masks, checked before anything is decoded."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_float, to_pillow
from ddpm.data.config import Preprocessing
from ddpm.data.images import BrokenFile, decode, resize_to, to_tensor
from ddpm.restoration.tasks import marked

MOST_BYTES = 20 * 2**20  # of one upload
PAINTED_FRACTION = 0.25  # of an image pixel that the brush must cover


def read_upload(
    source: str | Path | bytes | None, channels: int, what: str = "the upload", background=255
) -> Image.Image:
    """Read an uploaded file as a Pillow image of 1 to 4 channels.

    The header is checked before any pixel is decoded. An animation gives its first frame; transparent pixels get the
    colour `background`. Raises UserError with the reason if the file cannot be used.
    """
    if source is None:
        raise UserError(f"{what} is missing: draw one, open a file or choose an example")
    try:
        data = source if isinstance(source, bytes) else _bytes(Path(source))
        return decode(data, channels, background, smallest=1)
    except BrokenFile as error:
        raise UserError(f"{what} cannot be used: {error}") from error
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from error


def read_fitted(
    source: str | Path | bytes | None,
    shape: Sequence[int],
    what: str = "the upload",
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Read an uploaded file as (C, H, W) in [-1, 1], resized to `shape` as the model's training images were."""
    channels, height, width = shape
    how, background = preprocessing or Preprocessing()
    image = read_upload(source, channels, what, background)
    return to_float(to_tensor(resize_to(image, (height, width), how, background)))


def read_mask(layers: Sequence[str | bytes], size: tuple[int, int]) -> Tensor:
    """Combine the layers of a mask, each read by the rule of `marked`: bool (H, W), True where pixels are lost."""
    lost = torch.zeros(size, dtype=torch.bool)
    for layer in layers:
        covered = to_pillow(255 * marked(to_tensor(read_upload(layer, 2, "the mask")))[None].byte())
        fraction = np.asarray(covered.resize((size[1], size[0]), Image.Resampling.BOX)) / 255
        lost |= torch.from_numpy(fraction >= PAINTED_FRACTION)
    return lost


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BrokenFile(f"it is larger than {MOST_BYTES // 2**20} MB")
    return data


def read_address(text: str) -> bytes:
    """Return the content of a `data:` address; raise UserError for any other."""
    head, _, body = text.partition(";base64,")
    try:
        if not head.startswith("data:"):
            raise ValueError
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise UserError("the upload cannot be used: it is not an image") from error


def from_pad(pad: str | None, image: str | None = None) -> str | bytes | None:
    """Return the picture that a request brings: the file `image` of a program, or what is on the pad."""
    return image or _of_pad(pad, "image")


def mask_of(pad: str | None, mask: str | None = None) -> list[str | bytes]:
    """Return the mask that a request brings, for `read_mask`: the file of a program, or the marks on the pad."""
    given = mask or _of_pad(pad, "mask")
    return [given] if given else []


def _of_pad(pad: str | None, what: str) -> bytes | None:
    try:
        text = json.loads(pad or "{}").get(what)
    except (ValueError, AttributeError) as error:
        raise UserError("the pad holds no JSON object") from error
    return read_address(str(text)) if text else None
