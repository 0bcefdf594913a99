"""The U-Net against Diffusers', and what it promises beyond."""

import copy
import math
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from unet_cases import CASES, OURS, randomize

from ddpm.common.errors import UserError
from ddpm.networks import NetworkConfig, UNet
from ddpm.networks import unet as layers_module
from ddpm.networks.dropout import Dropout
from ddpm.networks.norm import GroupNorm
from ddpm.networks.unet import Conv, Linear, Upsample, doubled

SMALL_CASES = [name for name in CASES if name not in ("cifar10", "256px")]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_forward_equals_diffusers(name: str) -> None:
    case = CASES[name]
    ours, theirs = case.build()
    x, t, labels = case.inputs(torch.float32)
    expected = theirs(x, t, labels).sample
    assert expected.std() > 0.1
    assert relative_error(ours(x, t, labels), expected) < 1e-5


@pytest.mark.parametrize("name", SMALL_CASES)
def test_gradients_equal_diffusers(name: str) -> None:
    case = CASES[name]
    ours, theirs = (network.double() for network in case.build())
    x, t, labels = case.inputs(torch.float64)
    gradients = []
    for predict in (ours, lambda *inputs: theirs(*inputs).sample):
        image = x.clone().requires_grad_()
        output = predict(image, t, labels)
        direction = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))
        (output * direction).sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)
    named = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, named[key].grad, rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize(
    ("config", "image_size", "expected"),
    [
        ({"dropout": 0.1}, (32, 32), 35_746_307),  # CIFAR-10
        ({"channel_mult": [1, 1, 2, 2, 4, 4]}, (256, 256), 113_673_219),  # CelebA-HQ, LSUN
    ],
)
def test_parameter_counts_are_the_papers(config: dict, image_size: tuple[int, int], expected: int) -> None:
    with torch.device("meta"):
        network = UNet(NetworkConfig(**config), image_size)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_initialisation_is_ho_et_als() -> None:
    network = UNet(NetworkConfig(channels=64, channel_mult=[1, 2], attention=[8]), (16, 16), num_classes=3)
    near_zero = 0
    for name, layer in network.named_modules():
        if not isinstance(layer, Conv | Linear):
            continue
        assert not layer.bias.any()
        zero = name.endswith(("conv2", "conv_out", "to_out.0"))
        near_zero += zero
        area = math.prod(layer.weight.shape[2:])
        bound = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * area)) * (1e-5 if zero else 1)
        largest = layer.weight.abs().max()
        assert 0.95 * bound < largest <= bound, name  # uniform: the largest of so many is close to the bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert near_zero == 12 + 6 + 1  # residual blocks, attentions, the last convolution
    x = torch.randn(2, 3, 16, 16)
    assert network(x, torch.tensor([0.0, 999.0]), torch.tensor([0, 2])).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["diffusers_defaults", "resnet_resample"])
@torch.no_grad()
def test_bfloat16_is_near_float32(name: str) -> None:
    case = CASES[name]
    ours, _ = case.build()
    x, t, labels = case.inputs(torch.float32)
    expected = ours(x, t, labels)
    cast_in_layers = ours(x.bfloat16(), t, labels)
    assert cast_in_layers.dtype == torch.bfloat16
    assert relative_error(cast_in_layers.float(), expected) < 0.03
    assert relative_error(ours.bfloat16()(x.bfloat16(), t, labels).float(), expected) < 0.03


def test_bfloat16_activations_give_float32_gradients() -> None:
    case = CASES["classes"]
    ours, _ = case.build()
    x, t, labels = case.inputs(torch.float32)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        ours.zero_grad()
        ours(x.to(dtype), t, labels).float().square().mean().backward()
        assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in ours.parameters()]))
    assert relative_error(gradients[1], gradients[0]) < 0.05


@pytest.mark.parametrize(
    ("dtype", "order"), [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
def test_activations_keep_the_memory_order_that_is_fast(
    dtype: torch.dtype, order: torch.memory_format, channels: int, weights: torch.memory_format
) -> None:
    """Grey images are the trap: with one channel both orders look the same."""
    network = UNet(NetworkConfig(**OURS), (16, 16), channels, channels).to(memory_format=weights)
    seen = []
    for layer in network.modules():
        if isinstance(layer, Conv | GroupNorm):
            layer.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    network(torch.randn(2, channels, 16, 16).to(dtype), torch.zeros(2))
    assert len(seen) > 50
    assert all(tensor.is_contiguous(memory_format=order) for tensor in seen)


@pytest.mark.parametrize("resample", ["conv", "resnet"])
def test_gradient_checkpointing_changes_no_gradient(resample: str) -> None:
    config = NetworkConfig(**OURS, dropout=0.3, resample=resample)
    network = UNet(config, (16, 16))
    randomize(network)
    again = UNet(config.model_copy(update={"gradient_checkpointing": True}), (16, 16))
    again.load_state_dict(network.state_dict())
    x, t, keys = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 50.0]), torch.tensor([7, 8])
    for each in (network, again):
        each(x, t, dropout_keys=keys).square().mean().backward()
    for (name, one), other in zip(network.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_gradient_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        network = UNet(NetworkConfig(**OURS, gradient_checkpointing=checkpointing), (16, 16))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            network(torch.randn(2, 3, 16, 16), torch.zeros(2))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_an_image_does_not_depend_on_its_batch_in_training() -> None:
    network = UNet(NetworkConfig(**OURS, dropout=0.5), (16, 16)).double()
    randomize(network)
    x, t, keys = torch.randn(4, 3, 16, 16).double(), torch.arange(4.0), torch.arange(4) + 2**40
    whole = network(x, t, dropout_keys=keys)
    parts = [network(x[rows], t[rows], dropout_keys=keys[rows]) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["classes", "resnet_resample", "one_block", "scale_shift"])
@torch.no_grad()
def test_dropout_is_where_diffusers_has_it(name: str) -> None:
    """Their dropout modules give way to ours, numbered in the order in which an image passes them."""
    case = CASES[name]
    ours, theirs = case.build()
    config = ours.config.model_copy(update={"dropout": 0.4})
    network = UNet(config, case.image_size, case.in_channels, case.out_channels, case.num_classes).train().double()
    network.load_state_dict(ours.state_dict())
    keys, passed = torch.tensor([5, 2**50 + 3]), count()
    for module in theirs.double().modules():
        if isinstance(module, ResnetBlock2D):
            module.dropout.register_forward_hook(lambda _, inputs, output: Dropout(0.4, next(passed))(inputs[0], keys))
    x, t, labels = case.inputs(torch.float64)
    expected = theirs(x, t, labels).sample
    assert next(passed) > 5
    assert relative_error(network(x, t, labels, keys), expected) < 1e-6
    assert relative_error(network.eval()(x, t, labels, keys), expected) > 1e-3


def test_without_keys_dropout_follows_torchs_generator() -> None:
    network = UNet(NetworkConfig(**OURS, dropout=0.5), (16, 16))
    randomize(network)
    x, t = torch.randn(1, 3, 16, 16), torch.zeros(1)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(network(x, t))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_one_graph_for_a_compiler() -> None:
    """The whole network traces without a break, and the formula that a compiler sees is the one that runs eagerly."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, dropout=0.2)
    network = UNet(config, (8, 8), num_classes=2).double()
    randomize(network)
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    x, t, labels = torch.randn(2, 3, 8, 8).double(), torch.tensor([1.0, 9.5]), torch.tensor([0, 1])
    keys = torch.tensor([3, 2**45])
    gradients = []
    for each in (network, compiled):
        network.zero_grad()
        output = each(x, t, labels, keys)
        output.square().mean().backward()
        gradients.append([output, *(p.grad for p in network.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pixels", [2, 24])  # below and above where folding pays
def test_upsampling_is_doubling_then_convolving(pixels: int) -> None:
    layer = Upsample(64).double()
    x = torch.randn(1, 64, pixels, pixels + 1, dtype=torch.float64, requires_grad=True)
    folded, plain = layer(x), layer.conv(doubled(x))
    torch.testing.assert_close(folded, plain)
    direction = torch.randn_like(plain)
    for one, other in zip(
        *(torch.autograd.grad((y * direction).sum(), [x, *layer.parameters()]) for y in (folded, plain)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("limit", [0, 10_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.01)])
def test_attention_is_softmax_of_products(
    monkeypatch: pytest.MonkeyPatch, limit: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(layers_module, "MATMUL_TOKENS", limit)
    q, k, v = torch.randn(3, 2, 2, 30, 8, dtype=torch.float64).to(dtype)
    weights = torch.einsum("nhid,nhjd->nhij", q.double(), k.double()) / math.sqrt(8)
    expected = torch.einsum("nhij,nhjd->nhid", F.softmax(weights, -1), v.double())
    assert relative_error(layers_module.attention(q, k, v).double(), expected) < (
        1e-12 if q.dtype == q.double().dtype else 0.01
    )


def test_sizes_that_levels_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 levels .* divide by 8, and 28 .* use 24 or 32 pixels, or at most 3 levels"):
        UNet(NetworkConfig(attention=[]), (28, 28))
    with pytest.raises(UserError, match=r"use 2 or 4 pixels, or at most 1 level "):
        UNet(NetworkConfig(channel_mult=[1, 2], attention=[]), (4, 3))


def test_attention_at_a_size_of_no_level_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention names 16, .* 28×28 image are 28, 14, 7"):
        UNet(NetworkConfig(channel_mult=[1, 2, 4]), (28, 28))


@pytest.mark.parametrize("size", [(16, 8), (8, 16)])
def test_attention_goes_by_the_shorter_side(size: tuple[int, int]) -> None:
    config = NetworkConfig(channel_mult=[1, 2, 2], attention=[4])
    assert config.attention_levels(size) == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 48}, "48 channels .* 32 groups"),
        ({"heads": 2, "head_dim": 64}, "not both"),
        ({"channels": 2, "groups": 1}, "2 channels, but that takes at least 4"),
        ({"time_channels": 3}, "3 channels, but that takes at least 4"),
        ({"attentions": [16]}, "attentions"),
        ({"dropout": 1.0}, "dropout"),
        ({"downsample_padding": 2}, "downsample_padding"),
    ],
)
def test_configurations_that_cannot_be_built(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**fields)


def test_only_widths_that_attend_need_divide_into_heads() -> None:
    fields = {"channels": 32, "channel_mult": [1, 2, 4], "attention": [7], "head_dim": 64}
    with torch.device("meta"):
        network = UNet(NetworkConfig(**fields), (28, 28))
        assert network.mid_block.attentions[0].heads == network.up_blocks[0].attentions[0].heads == 2
        with pytest.raises(UserError, match=r"over 32 channels .* heads of 64: .* divide 32"):
            UNet(NetworkConfig(**{**fields, "attention": [28]}), (28, 28))
        with pytest.raises(UserError, match=r"over 128 channels .* 3 heads"):
            UNet(NetworkConfig(**{**fields, "attention": [], "head_dim": None, "heads": 3}), (28, 28))


def test_labels_are_for_networks_with_classes() -> None:
    x, t, labels = torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UserError, match="no classes"):
        UNet(NetworkConfig(**OURS), (16, 16))(x, t, labels)
    with pytest.raises(UserError, match="give labels"):
        UNet(NetworkConfig(**OURS), (16, 16), num_classes=3)(x, t)


def test_a_copy_of_a_network_is_independent() -> None:
    network = UNet(NetworkConfig(**OURS), (16, 16))
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.conv_in.weight.add_(1)
    assert not torch.equal(network.conv_in.weight, other.conv_in.weight)


def test_without_keys_every_image_has_its_own_dropout_and_none_costs_a_random_number() -> None:
    network = UNet(NetworkConfig(**OURS, dropout=0.5), (16, 16))
    randomize(network)
    x, t = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1), torch.zeros(2)
    first, second = network(x, t)
    assert not torch.equal(first, second)
    plain = UNet(NetworkConfig(**OURS), (16, 16))
    before = torch.get_rng_state()
    plain(x, t)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 4000), st.integers(1, 4000))
@example(7, 61)
@settings(deadline=None)
def test_levels_have_the_widths_whose_ratio_is_the_multiple(first: int, width: int) -> None:
    """As configurations of other libraries are read; 7 · (61 / 7) is less than 61 in floating point."""
    config = NetworkConfig(channels=first, channel_mult=[1, width / first], groups=1, freq_shift=0, time_channels=2)
    assert config.widths == [first, width]
