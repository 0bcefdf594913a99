"""The count of operations against PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm.networks import NetworkConfig, UNet, count_flops


def test_equals_the_operations_that_run(capsys) -> None:
    config = NetworkConfig(channels=96, channel_mult=[1, 2], attention=[4], head_dim=32)  # too wide to fold Upsample
    network = UNet(config, (8, 8), num_classes=2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert count_flops(network) == counter.get_total_flops()
    assert capsys.readouterr().out == ""


def test_grows_with_the_pixels() -> None:
    """Without attention all but the layers on t cost in proportion to the pixels."""
    config = NetworkConfig(channels=32, channel_mult=[1, 2], attention=[], mid_attention=False)
    small, large = (count_flops(UNet(config, (size, 2 * size))) for size in (8, 16))
    assert 3.9 < large / small <= 4


def test_the_papers_network() -> None:
    with torch.device("meta"):
        network = UNet(NetworkConfig(), (32, 32))
    attention = 5 * 4 * 256**2 * 256 + 4 * 16**2 * 256  # five at 16×16, one at 4×4
    assert (count_flops(network) - attention) / 1e9 == pytest.approx(12.1, abs=0.05)
