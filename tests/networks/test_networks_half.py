"""Each operation in half precision against float64: off by a few roundings of the format and no more."""

import math

import pytest
import torch
from torch import Tensor, nn

from ddpm.networks import NetworkConfig, UNet
from ddpm.networks import unet as layers
from ddpm.networks.unet import Attention, Conv, Downsample, Linear, TimeEmbedding, Upsample, doubled, halved, sinusoid

FORMATS = [torch.bfloat16, torch.float16]


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to a format."""
    return torch.finfo(dtype).eps / 2


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.4 + 0.1)
    return module.requires_grad_(False)


def magnitude(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer that is linear gives if all its numbers are positive: |W|·|x| + |b|, the measure of its rounding."""
    positive = module.double()
    for parameter in positive.parameters():
        parameter.abs_()
    return positive(x.abs())


def within(found: Tensor, exact: Tensor, size: Tensor, roundings: float) -> None:
    assert (found.double() - exact).abs().le(roundings * rounding(found.dtype) * size).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Linear(37, 11), (5, 37)),
        (lambda: Conv(6, 10, 3, padding=1), (2, 6, 7, 5)),
        (lambda: Conv(1, 5, 3, stride=2), (3, 1, 9, 6)),
        (lambda: Conv(7, 4, 1), (2, 7, 3, 4)),
        (lambda: Conv(6, 10, 3, padding=1, adds_bias=False), (2, 6, 7, 5)),
        (lambda: Downsample(6, 0), (2, 6, 8, 6)),
        (lambda: Downsample(6, 1), (2, 6, 8, 6)),
        (lambda: Upsample(6), (2, 6, 5, 7)),
        (lambda: Upsample(60), (1, 60, 2, 3)),  # too few pixels to fold the kernel
        (lambda: Linear(37, 11).eval(), (1, 37)),  # rows are padded
        (lambda: Linear(37, 11).eval(), (3, 37)),
        (lambda: Linear(37, 11).eval(), (2, 3, 37)),
    ],
    ids=["linear", "conv", "stride", "pointwise", "no_bias", "down_0", "down_1", "folded", "plain", "1", "3", "2x3"],
)
def test_linear_layers_round_their_weights_and_their_result(make, shape, dtype):
    module = randomised(make())
    x = torch.randn(shape).to(dtype)
    found = module(x)
    assert found.dtype == dtype
    exact = module.double()(x.double())
    # the weights, the bias and the result are rounded once each; sums are float32
    within(found, exact, magnitude(module, x.double()), 3.1)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("limit", [0, 1000])
def test_attention_rounds_its_scores_once(monkeypatch, dtype, limit):
    """The scores reach 6; q, scores, weights and the result are rounded: e^s errs by |s| roundings."""
    monkeypatch.setattr(layers, "MATMUL_TOKENS", limit)
    q, k, v = (torch.randn(2, 3, 13, 8).mul(1.5).to(dtype) for _ in range(3))
    scores = torch.einsum("nhid,nhjd->nhij", q.double(), k.double()) / math.sqrt(8)
    exact = torch.einsum("nhij,nhjd->nhid", scores.softmax(-1), v.double())
    size = torch.einsum("nhij,nhjd->nhid", scores.softmax(-1) * (2 + 4 * scores.abs().amax(-1, True)), v.double().abs())
    within(layers.attention(q, k, v), exact, size, 1.0)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("heads", [{}, {"heads": 2}, {"head_dim": 2}])
def test_attention_block(dtype, heads):
    """Against float64: q, k, v of the normed image, by heads, projected and added to the image itself."""
    config = NetworkConfig(channels=8, channel_mult=[1], attention=[], groups=4, **heads)
    block, x = randomised(Attention(config, 8)), torch.randn(2, 8, 3, 5).to(dtype)
    found = block(x)
    block.double()
    normed = nn.functional.group_norm(x.double(), 4, block.group_norm.weight, block.group_norm.bias, 1e-6)
    tokens = normed.flatten(2).transpose(1, 2)
    n_heads, parts = config.heads_over(8), []
    for head in range(n_heads):
        at = slice(head * 8 // n_heads, (head + 1) * 8 // n_heads)
        q, k, v = (layer(tokens)[..., at] for layer in (block.to_q, block.to_k, block.to_v))
        parts.append((q @ k.transpose(1, 2) / math.sqrt(8 / n_heads)).softmax(-1) @ v)
    exact = x.double() + block.to_out[0](torch.cat(parts, -1)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x.double()), exact)
    assert (found.double() - exact).norm() < 8 * rounding(dtype) * exact.norm()


@pytest.mark.parametrize("dtype", [*FORMATS, torch.float64])
def test_doubling_and_halving_are_exact(dtype):
    x = torch.randint(-8, 8, (2, 3, 4, 6)).to(dtype)
    assert torch.equal(doubled(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    means = x.double().reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    assert torch.equal(halved(x).double(), means)


# --- t and the class


@pytest.mark.parametrize("channels", [8, 33])
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_sinusoid_is_the_papers(channels, shift, flip, dtype):
    """sin and cos of t / 10000^(i/(half - shift)); an odd width ends in a zero."""
    t = torch.tensor([0, 1, 37, 998, 999]).to(dtype)
    half = channels // 2
    found = sinusoid(t, channels, shift, flip)
    assert found.dtype == torch.float32
    assert found.shape == (5, channels)
    for row, time in zip(found.tolist(), t.tolist(), strict=True):
        angles = [time / 10000 ** (i / (half - shift)) for i in range(half)]
        sines, cosines = list(map(math.sin, angles)), list(map(math.cos, angles))
        expected = [*cosines, *sines] if flip else [*sines, *cosines]
        assert row == pytest.approx(expected + [0.0] * (channels % 2), abs=2e-4)  # float32 angles near 999


def test_time_embedding_is_two_layers_with_silu_between():
    module = randomised(TimeEmbedding(6)).double()
    waves = torch.randn(3, 6, dtype=torch.float64)
    first = waves @ module.linear_1.weight.T + module.linear_1.bias
    expected = (first * first.sigmoid()) @ module.linear_2.weight.T + module.linear_2.bias
    torch.testing.assert_close(module(waves), expected)
    assert expected.shape == (3, 24)


@pytest.mark.parametrize("dtype", FORMATS)
def test_t_and_class_are_embedded_in_float32_whatever_the_image_is(dtype):
    """999 in bfloat16 would be 1,000; so the embedding is that of float32, bit for bit."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)
    network = UNet(config, (8, 8), 1, 1, 3)
    randomised(network)
    x, t, labels = torch.randn(4, 1, 8, 8), torch.tensor([998.0, 999.0, 999.5, 3.25]), torch.tensor([2, 0, 1, 1])
    expected = network._embedding(x, t, labels)
    assert torch.equal(network._embedding(x.to(dtype), t, labels), expected)
    waves = sinusoid(t, 8, 1, False).double()
    copy = randomised_copy(network)
    total = copy.time_embedding(waves) + copy.class_embedding.weight[labels]
    torch.testing.assert_close(expected.double(), total * total.sigmoid(), rtol=1e-5, atol=1e-6)
    seen: list[Tensor] = []
    network.mid_block.resnets[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    network(x.to(dtype), t, labels)
    assert torch.equal(seen[0], expected)


def randomised_copy(network: UNet) -> UNet:
    copy = UNet(network.config, network.image_size, 1, 1, 3).double().requires_grad_(False)
    copy.load_state_dict(network.state_dict())
    return copy
