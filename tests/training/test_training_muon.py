"""Muon against a float64 reference written from its description, and against PyTorch's own."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training.optimizer import Muon, Optimizer, muon_parameters, orthogonalized

RATE = 0.01
FINITE = torch.tensor(True)


def quintic(matrix: np.ndarray) -> np.ndarray:
    """Five times a·s + b·s³ + c·s⁵ on the singular values of a matrix divided by its Frobenius norm."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_orthogonalized_moves_the_singular_values_near_1(shape):
    matrices = np.random.default_rng(0).normal(size=(2, *shape)) * [[[0.1]], [[50.0]]]
    found = orthogonalized(torch.from_numpy(matrices))
    for matrix, orthogonal in zip(matrices, found.numpy(), strict=True):
        assert orthogonal == pytest.approx(quintic(matrix), abs=1e-4)
        assert np.all(np.abs(np.linalg.svd(orthogonal)[1] - 0.95) < 0.3)


def test_orthogonalized_of_nothing_is_nothing():
    assert torch.equal(orthogonalized(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_muon_steps_are_the_formulas_of_its_description():
    """Nesterov momentum 0.95, orthogonalized, times 0.4·√(longer side), and the decay.

    Two weights have one shape, one has another.
    """
    torch.manual_seed(0)
    named = {
        "a": nn.Parameter(torch.randn(3, 2, 2, 2)),
        "b": nn.Parameter(torch.randn(3, 8)),
        "c": nn.Parameter(torch.randn(5, 2)),
    }
    named["a"].data = named["a"].data.contiguous(memory_format=torch.channels_last)
    weights = {name: p.detach().flatten(1).double().numpy() for name, p in named.items()}
    momentum = {name: np.zeros_like(w) for name, w in weights.items()}
    muon = Muon(named, weight_decay=0.1)
    for _ in range(3):
        for name, parameter in named.items():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.flatten(1).double().numpy()
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            ahead = 0.95 * momentum[name] + 0.05 * gradient
            update = 0.4 * np.sqrt(max(ahead.shape)) * quintic(ahead)
            weights[name] -= RATE * (update + 0.1 * weights[name])
        muon.step(RATE, FINITE)
    for name, parameter in named.items():
        assert parameter.detach().flatten(1).numpy() == pytest.approx(weights[name], abs=1e-4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon since 2.9")
def test_muon_agrees_with_pytorch():
    """PyTorch computes in bf16 and scales by 0.2, so its rate is twice as high and its decay half as strong."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(16, 40))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon({"weight": ours}, 0.1, torch.bfloat16)
    peer = torch.optim.Muon([theirs], lr=2 * RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        muon.step(RATE, FINITE)
        peer.step()
    assert torch.allclose(ours, theirs, atol=0.05 * RATE)


@pytest.mark.parametrize("bad", ["gradient", "loss"])
def test_muon_leaves_everything_after_a_step_that_is_not_finite(bad):
    torch.manual_seed(0)
    network = nn.Linear(3, 4)
    optimizer = Optimizer(network, 1.0, muon=Muon(muon_parameters(network)))
    network.weight.grad, network.bias.grad = torch.randn(4, 3), torch.randn(4)
    optimizer.step(RATE, torch.tensor(1.0))
    before = {**network.state_dict(), **optimizer.state_dict()}
    before = {name: tensor.clone() for name, tensor in before.items()}
    network.weight.grad, network.bias.grad = torch.randn(4, 3), torch.randn(4)
    if bad == "gradient":
        network.bias.grad[1] = torch.inf
    optimizer.step(RATE, torch.tensor(torch.nan if bad == "loss" else 1.0))
    after = {**network.state_dict(), **optimizer.state_dict()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_muon_takes_the_inner_kernels_and_matrices_alone():
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)
    network = UNet(config, (8, 8), 1, 1, num_classes=3)
    names = set(muon_parameters(network))
    assert {"down_blocks.0.resnets.0.conv1.weight", "mid_block.attentions.0.to_q.weight"} <= names
    assert {"up_blocks.0.upsamplers.0.conv.weight", "up_blocks.0.resnets.0.conv_shortcut.weight"} <= names
    left = {name for name, p in network.named_parameters() if p.ndim > 1} - names
    assert {name.split(".")[-2] for name in left} == {
        "conv_in",
        "conv_out",
        "linear_1",
        "linear_2",
        "time_emb_proj",
        "class_embedding",
    }
    optimizer = Optimizer(network, None, muon=Muon(muon_parameters(network)))
    keys = {name.rpartition(".")[0] for name in optimizer.state_dict()}
    assert keys == names  # Adam has no moments before its first step
