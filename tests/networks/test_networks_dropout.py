"""Dropout masks as a function of key and layer: their statistics, and their independence."""

import pytest
import torch

from ddpm.networks.dropout import Dropout

SHAPE = torch.Size((1000, 8, 12, 12))
P = 0.3


def masks(layer: int = 0, first_key: int = 0, probability: float = P, shape: torch.Size = SHAPE) -> torch.Tensor:
    """(N, elements), 1 where dropped."""
    keys = torch.arange(first_key, first_key + shape[0])
    return Dropout(probability, layer)._dropped(shape, keys).flatten(1).double()


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_rate_of_all_and_of_each_image(probability: float) -> None:
    dropped = masks(probability=probability)
    deviation = (probability * (1 - probability)) ** 0.5
    assert dropped.mean() == pytest.approx(probability, abs=5 * deviation / dropped.numel() ** 0.5)
    z = (dropped.mean(1) - probability) / deviation * dropped.shape[1] ** 0.5
    assert z.abs().max() < 5
    assert 0.85 < z.std() < 1.15


def test_rate_of_each_element_over_keys() -> None:
    dropped = masks(shape=torch.Size((2000, 2, 8, 8)))
    z = (dropped.mean(0) - P) / (P * (1 - P) / 2000) ** 0.5
    assert z.abs().max() < 5
    assert 0.8 < z.std() < 1.2


@pytest.mark.parametrize("other", [{"layer": 1}, {"first_key": 1000}, {"first_key": 1}, {"first_key": 2**32}])
def test_other_keys_and_layers_are_uncorrelated(other: dict[str, int]) -> None:
    one, two = masks() - P, masks(**other) - P
    z = (one * two).mean(1) / (P * (1 - P)) * one.shape[1] ** 0.5
    assert z.abs().max() < 5
    assert 0.85 < z.std() < 1.15


def test_images_of_a_batch_are_uncorrelated() -> None:
    centred = (masks() - P) / (P * (1 - P)) ** 0.5
    z = centred @ centred.T / centred.shape[1] ** 0.5
    z = z[~torch.eye(len(z), dtype=torch.bool)]
    assert z.abs().max() < 6
    assert 0.9 < z.std() < 1.1


def test_neighbouring_elements_are_uncorrelated() -> None:
    centred = (masks() - P) / (P * (1 - P)) ** 0.5
    for lag in (1, 8, 12, 8 * 12):
        z = (centred[:, lag:] * centred[:, :-lag]).mean() * (centred.numel()) ** 0.5
        assert abs(z) < 5, lag


def test_mean_is_kept_and_gradient_follows_the_mask() -> None:
    x = torch.ones(SHAPE, requires_grad=True)
    y = Dropout(P, 3)(x, torch.arange(1000))
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - P)])
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_nothing_is_dropped_when_evaluating() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert Dropout(P, 0).eval()(x, None) is x
    assert Dropout(0.0, 0)(x, None) is x
    with pytest.raises(ValueError, match="key"):
        Dropout(P, 0)(x, None)


def plain_word(x: int) -> int:
    """Wellons' lowbias32 in whole numbers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("key", [0, 1, 2**31 + 5, 2**40 + 7, 2**62 - 1])
@pytest.mark.parametrize(("layer", "probability"), [(0, 0.3), (1, 0.04), (21, 0.75)])
def test_masks_are_the_hash_written_out(key: int, layer: int, probability: float) -> None:
    """u = a·s + b modulo 2³², compared as numbers that begin at -2³¹; elements are counted channels-last."""
    salt, shape = 0x9E3779B9 * (layer + 1) % 2**32, torch.Size((1, 3, 4, 5))
    low, high = key % 2**32, key >> 32
    b = plain_word((plain_word(plain_word(low) ^ high) + salt) % 2**32)
    a = plain_word((b + 1) % 2**32) | 1
    mask = Dropout(probability, layer)._dropped(shape, torch.tensor([key]))
    for element in range(60):
        u = (a * plain_word((plain_word(element) + salt) % 2**32) + b) % 2**32
        channel, row, column = element % 3, element // 15, element // 3 % 5
        assert mask[0, channel, row, column].item() == ((u + 2**31) % 2**32 < round(probability * 2**32))
