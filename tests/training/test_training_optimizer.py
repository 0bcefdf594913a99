"""The optimizer alone: clipping, the loss scale, and what a step that is not finite leaves."""

import math

import pytest
import torch
from torch import nn

from ddpm.training import optimizer as optimizer_module
from ddpm.training.config import TrainingConfig
from ddpm.training.optimizer import Muon, Optimizer, learning_rate, muon_parameters


def test_clipping_leaves_a_gradient_up_to_its_limit_alone():
    """The step sees the gradient itself, not one of the limit's length; one that is longer gets that length."""
    for length, limit, expected in (
        (0.5, 1.0, 0.5),
        (0.999, 1.0, 0.999),
        (4.0, 1.0, 1.0),
        (30.0, 2.5, 2.5),
        (5, None, 5),
    ):
        for scales in (False, True):
            parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
            module = nn.Module()
            module.register_parameter("p", parameter)
            optimizer = Optimizer(module, limit, scales)
            parameter.grad = torch.tensor([0.6, -0.8]) * length * float(optimizer.scale)
            assert optimizer.step(1e-3, torch.tensor(0.0)).item() == pytest.approx(length)
            first = optimizer.state_dict()["p.exp_avg"] / 0.1
            torch.testing.assert_close(first, torch.tensor([0.6, -0.8]) * expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("warmup", [0, 4])
def test_learning_rate_rises_in_a_line_and_then_falls_as_its_schedule_says(warmup):
    """Of 16 steps; the first one after the warm-up has the whole rate, and one after the last would have none."""
    curves = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1 - done,
        "cosine": lambda done: math.cos(done * math.pi / 2) ** 2,
    }
    for name, curve in curves.items():
        config = TrainingConfig(steps=16, warmup=warmup, learning_rate=0.3, lr_schedule=name)
        expected = [0.3 * (step + 1) / warmup for step in range(warmup)]
        expected += [0.3 * curve(step / (16 - warmup)) for step in range(17 - warmup)]
        assert [learning_rate(config, step) for step in range(17)] == pytest.approx(expected, abs=1e-12)


def test_loss_scale_doubles_after_so_many_good_steps_and_halves_at_an_overflow(monkeypatch):
    """Micikevicius et al. 2018, section 3.2; an overflow changes nothing else, and the count begins again."""
    assert optimizer_module.GROW_AFTER == 2000
    monkeypatch.setattr(optimizer_module, "GROW_AFTER", 6)
    network = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(network, None, True)
    assert optimizer.scale == 2**16

    def step(gradient: float, loss: float = 0.0) -> None:
        network.weight.grad = torch.full((1, 1), gradient)
        optimizer.step(0.0, torch.tensor(loss))

    def good(times: int) -> float:
        for _ in range(times):
            step(3.0)
        return math.log2(optimizer.scale)

    assert [good(1) for _ in range(14)] == [16] * 5 + [17] * 6 + [18] * 3
    assert good(2) == 18
    before = {name: tensor.clone() for name, tensor in optimizer.state_dict().items() if "scale" not in name}
    step(math.inf)
    assert optimizer.scale == 2**17
    step(1.0, loss=math.nan)
    assert optimizer.scale == 2**16
    assert all(torch.equal(optimizer.state_dict()[name], tensor) for name, tensor in before.items())
    assert good(5) == 16
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    assert good(1) == 17
    resumed = Optimizer(network, None, True)
    resumed.load_state_dict(state)
    assert (resumed.scale, resumed.good_steps) == (2**16, 5)


def test_optimizer_state_is_restored_by_name_in_the_memory_order_of_the_parameters():
    """Also into parameters that lie in memory channel by channel, which the fused kernel needs."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1)).to(memory_format=torch.channels_last)

    first, second = network(), network()
    optimizers = [Optimizer(first, 1.0), Optimizer(second, 1.0)]

    def step(index: int, number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        for p in (first, second)[index].parameters():
            p.grad = torch.randn(p.shape, generator=draw).to(memory_format=torch.preserve_format)
        optimizers[index].step(1e-2, torch.tensor(0.0))

    for number in range(3):
        step(0, number)
    state = {name: tensor.clone().contiguous() for name, tensor in optimizers[0].state_dict().items()}
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(state)
    for p in second.parameters():
        moments = optimizers[1].adam.state[p]
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == p.stride()
    step(0, 3)
    step(1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(optimizers[1].state_dict()[name], t) for name, t in optimizers[0].state_dict().items())
    assert set(state) == {
        f"{i}.{p}.{key}" for i in "01" for p in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    fresh = Optimizer(network(), 1.0)
    fresh.load_state_dict({})  # a checkpoint from before the first step
    assert fresh.state_dict() == {}


@pytest.mark.parametrize("scales", [False, True])
def test_muon_gets_the_clipped_gradient_without_the_loss_scale(scales):
    network = nn.Linear(3, 2)
    optimizer = Optimizer(network, 1.0, scales, Muon(muon_parameters(network)))
    draw = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=draw) for p in network.parameters()]
    length = float(torch.cat([g.flatten() for g in gradients]).norm())
    for p, g in zip(network.parameters(), gradients, strict=True):
        p.grad = g * 4 * optimizer.scale
    assert float(optimizer.step(1e-3, torch.tensor(0.0))) == pytest.approx(4 * length)
    state = optimizer.state_dict()
    torch.testing.assert_close(state["weight.momentum"], 0.05 * gradients[0] / length, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(state["bias.exp_avg"], 0.1 * gradients[1] / length, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_optimizer_leaves_everything_alone_if_loss_or_gradient_is_not_finite(scales, clip):
    network = nn.Linear(2, 1)
    optimizer = Optimizer(network, clip, scales)

    def step(gradient: float, loss: float) -> None:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step(0.1, torch.tensor(loss))

    step(0.3, 1.0)
    kept = [p.detach().clone() for p in network.parameters()]
    moments = {name: t.clone() for name, t in optimizer.state_dict().items() if "scale" not in name}
    for gradient, loss in ((math.nan, 1.0), (-math.inf, 1.0), (0.3, math.inf), (0.3, math.nan)):
        step(gradient, loss)
        assert all(torch.equal(p, before) for p, before in zip(network.parameters(), kept, strict=True))
        assert all(torch.equal(optimizer.state_dict()[name], value) for name, value in moments.items())
    step(0.3, 1.0)
    assert optimizer.state_dict()["weight.step"] == 2
    assert not torch.equal(kept[0], network.weight)
