"""Dropout without a random number generator: the mask is a function of the image's key and the layer.

So it is the same however a batch is split over processes or micro-batches, after a resume, and when gradient
checkpointing computes a block a second time.
"""

import torch
from torch import Tensor, nn

_WORD = 2**32


def _mixed(x: Tensor) -> Tensor:
    """Hash 32-bit words bijectively; every input bit affects every output bit (Wellons' "lowbias32").

    x: int32, read as unsigned; products wrap.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def _signed(word: int) -> int:
    return (word + _WORD // 2) % _WORD - _WORD // 2


class Dropout(nn.Module):
    """Drops each element with `probability`, in training mode, by words u = a·s + b modulo 2³².

    s is one random word per element, the same for all images; a (odd) and b come from the image's key and the layer.
    Each u is then exactly uniform, independent over an image's elements and pairwise over images, at the
    cost of one multiply-add instead of one hash per element and image.
    """

    def __init__(self, probability: float, layer: int):
        super().__init__()
        self.probability, self.layer = probability, layer

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x (N, C, H, W); keys (N,) int64, not needed if nothing is dropped."""
        if not self.training or self.probability == 0:
            return x
        if keys is None:
            raise ValueError("dropout in training mode needs one key per image")
        return (x * (1 / (1 - self.probability))).masked_fill(self._dropped(x.shape, keys), 0)

    def _dropped(self, shape: torch.Size, keys: Tensor) -> Tensor:
        """Return the mask of dropped elements, bool (N, C, H, W), channels-last."""
        n, channels, height, width = shape
        salt = _signed(0x9E3779B9 * (self.layer + 1) % _WORD)
        elements = torch.arange(height * width * channels, dtype=torch.int32, device=keys.device)
        s = _mixed(_mixed(elements) + salt).reshape(1, height, width, channels)
        low, high = keys.to(torch.int32), (keys >> 32).to(torch.int32)
        b = _mixed(_mixed(_mixed(low) ^ high) + salt)
        a = _mixed(b + 1) | 1
        u = s * a.reshape(n, 1, 1, 1) + b.reshape(n, 1, 1, 1)
        return (u < _signed(round(self.probability * _WORD) + _WORD // 2)).permute(0, 3, 1, 2)
