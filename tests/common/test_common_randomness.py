"""Random numbers of an image against the hash and the generator that define them."""

import hashlib

import pytest
import torch

from ddpm.common.randomness import ImageNoise, derive_seed, image_generator


@pytest.mark.parametrize("words", [(0,), (3, "sample", 17), ("training", 2**40, -1), (1, 23), (12, 3)])
def test_a_seed_is_the_hash_of_its_words(words):
    digest = hashlib.blake2b("/".join(str(word) for word in words).encode(), digest_size=8).digest()
    expected = sum(byte << 8 * place for place, byte in enumerate(digest)) // 2
    assert derive_seed(*words) == expected
    assert 0 <= expected < 2**63


@pytest.mark.parametrize("indices", [[0, 1, 2], [7], [5, 2, 2**33]])
def test_each_image_has_a_stream_of_its_own(indices):
    shape = (2, 3, 5)
    noise = ImageNoise.of_seed(9, indices, shape)
    draws = [noise(), noise(), noise()]
    double = ImageNoise.of_seed(9, indices, shape, dtype=torch.float64)()
    assert double.dtype == torch.float64
    for row, index in enumerate(indices):
        generator = torch.Generator().manual_seed(derive_seed(9, "sample", index))
        assert image_generator(9, index).initial_seed() == generator.initial_seed()
        for draw in draws:
            assert torch.equal(draw[row], torch.randn(shape, generator=generator))
        assert torch.equal(double[row].float(), draws[0][row])
