"""The average against its closed form, and what it keeps."""

import pytest
import torch
from torch import nn

from ddpm.training.optimizer import EMA


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.zeros(1))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.count.fill_(value)


VALUES = [2.0, -1.0, 0.5, 3.0, 7.0]


def test_closed_form_without_warmup() -> None:
    """Σ (1 - d) dⁿ⁻ⁱ vᵢ + dⁿ v₀."""
    network, decay = Toy(), 0.9
    network.become(4.0)
    ema = EMA(network, decay, warmup=False)
    for value in VALUES:
        network.become(value)
        ema.update(network)
    n = len(VALUES)
    expected = decay**n * 4.0 + sum((1 - decay) * decay ** (n - 1 - i) * v for i, v in enumerate(VALUES))
    ema.copy_to(network)
    assert network.weight.tolist() == pytest.approx([expected] * 3)
    assert network.count.item() == VALUES[-1]  # copied, not averaged


def test_closed_form_with_warmup() -> None:
    network = Toy()
    network.become(4.0)
    ema = EMA(network, 0.3, warmup=True)
    expected = 4.0
    for n, value in enumerate(VALUES):
        decay = min(0.3, (1 + n) / (10 + n))  # 1/10, 2/11, 3/12, then 0.3
        expected = decay * expected + (1 - decay) * value
        network.become(value)
        ema.update(network)
    assert ema.parameters["weight"].tolist() == pytest.approx([expected] * 3)


def test_small_steps_are_not_lost() -> None:
    """1 - 0.9999 of a small difference is below half precision's resolution: the average is float32 even so."""
    network = Toy().bfloat16()
    network.become(1.0)
    ema = EMA(network, 0.9999, warmup=False)
    network.become(2.0)
    for _ in range(10):
        ema.update(network)
    assert ema.parameters["weight"].dtype == torch.float32
    assert ema.parameters["weight"][0].item() == pytest.approx(2 - 0.9999**10, abs=1e-6)


def test_going_on_from_a_saved_state() -> None:
    network = Toy()
    whole, first = EMA(network, 0.99), EMA(network, 0.99)
    for value in VALUES[:3]:
        network.become(value)
        whole.update(network)
        first.update(network)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = EMA(Toy(), 0.99)
    second.load_state_dict(state)
    for value in VALUES[3:]:
        network.become(value)
        whole.update(network)
        second.update(network)
    assert second.updates == whole.updates == len(VALUES)
    assert torch.equal(second.parameters["weight"], whole.parameters["weight"])
    assert torch.equal(second.buffers["count"], whole.buffers["count"])
