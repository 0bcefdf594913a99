"""Stateless randomness: every random number belongs to an image and can be computed again from (seed, index).

A sample depends on (seed, its index), a training image on (seed, step, its position in the global batch), never on the
batch, the number of processes or earlier random numbers. Noise is generated on the CPU, so that every device starts
from the same numbers.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*words: int | str) -> int:
    """Return a 63-bit seed from any words, e.g. `derive_seed(seed, "training", step, position)`."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the generator of sample `index` of `seed`: it gives x_T first, then one tensor per sampling step."""
    return torch.Generator().manual_seed(derive_seed(seed, "sample", index))


class ImageNoise:
    """Standard normal noise for a batch in which every image has its own stream.

    Args:
        generators: one CPU generator per image.
        shape: (C, H, W) of one image.
        device, dtype: of the tensors that are returned; they are generated as float32 on the CPU.

    Each call returns the next (N, C, H, W) tensor.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.generators, self.shape, self.device, self.dtype = list(generators), tuple(shape), device, dtype

    @classmethod
    def of_seed(cls, seed: int, indices: Sequence[int], shape: Sequence[int], **where) -> "ImageNoise":
        """Return the noise of samples `indices` of `seed`."""
        return cls([image_generator(seed, index) for index in indices], shape, **where)

    def __call__(self) -> Tensor:
        # a GPU copies from pinned memory while it computes, and the host can go on generating
        pinned = torch.device(self.device).type == "cuda"
        noise = torch.empty(len(self.generators), *self.shape, pin_memory=pinned)
        for row, generator in zip(noise, self.generators, strict=True):
            torch.randn(self.shape, generator=generator, out=row)
        return noise.to(self.device, self.dtype, non_blocking=True)
