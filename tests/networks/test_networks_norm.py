"""The fused normalisation against PyTorch's parts, and its derivative against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.networks import norm as norm_module
from ddpm.networks.norm import GroupNorm, _ByChannel, _Fused

N, C, H, W, GROUPS = 3, 4, 2, 3, 2


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, added, scale, shift."""
    x = (3 * torch.randn(N, C, H, W) + 2).to(dtype)
    return x.contiguous(memory_format=torch.channels_last), *torch.randn(3, N, C, dtype=torch.float64).unbind()


def layer(silu: bool = True) -> GroupNorm:
    module = GroupNorm(GROUPS, C, 1e-6, silu).double()
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    return module


def reference(module: GroupNorm, x: Tensor, added: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same of PyTorch's parts."""
    h = F.group_norm(x + added[:, :, None, None], GROUPS, module.weight, module.bias, module.eps)
    h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(h) if module.silu else h


def fused(module: GroupNorm, x: Tensor, added: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """What half precision takes on the CPU, here in any."""
    gamma, beta = module.weight * (1 + scale), module.bias * (1 + scale) + shift
    return _Fused.apply(x, added, gamma, beta, GROUPS, module.eps, module.silu)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])  # one image at a time, two, all
def test_fused_equals_its_parts(monkeypatch: pytest.MonkeyPatch, silu: bool, chunk: int) -> None:
    monkeypatch.setattr(norm_module, "CHUNK", chunk)
    module, (x, *rest) = layer(silu), inputs()
    torch.testing.assert_close(fused(module, x, *rest), reference(module, x, *rest))
    none = torch.zeros(N, C, dtype=torch.float64)
    torch.testing.assert_close(fused(module, x, None, none, none), reference(module, x, none, none, none))


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_by_channel_equals_its_parts(silu: bool, dtype: torch.dtype) -> None:
    """What a CUDA card takes, here on the CPU."""
    module, (x, added, scale, shift) = layer(silu), inputs(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    gamma, beta = module.weight * (1 + scale), module.bias * (1 + scale) + shift
    given = (tensor.to(exact) for tensor in (added, gamma, beta))
    result = _ByChannel.apply(x, *given, GROUPS, module.eps, silu)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, reference(module, x.double(), added, scale, shift).to(dtype))


@pytest.mark.parametrize("silu", [True, False])
def test_by_channel_derivative(silu: bool) -> None:
    x, added, gamma, beta = (tensor.requires_grad_() for tensor in inputs())
    for gains in (gamma, gamma[:1].detach().requires_grad_()):  # its own for every image, or one for all
        for biases in (added, added[:1].detach().requires_grad_(), None):
            given = tuple(tensor for tensor in (x, gains, beta, biases) if tensor is not None)
            assert torch.autograd.gradcheck(
                lambda x, gains, beta, biases=None: _ByChannel.apply(x, biases, gains, beta, GROUPS, 1e-6, silu), given
            )
    black = torch.zeros_like(x).requires_grad_()  # the norm of nothing has a corner
    _ByChannel.apply(black, None, gamma, beta, GROUPS, 1e-6, True).sum().backward()
    assert black.grad is not None
    assert black.grad.isfinite().all()


def test_by_channel_is_one_graph_for_a_compiler() -> None:
    """Forward and backward give what runs eagerly."""
    found = []
    for run in (_ByChannel.apply, torch.compile(_ByChannel.apply, backend="aot_eager", fullgraph=True, dynamic=False)):
        torch.manual_seed(0)
        given = [tensor.requires_grad_() for tensor in inputs()]
        y = run(*given, GROUPS, 1e-6, True)
        found.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_fused_derivative(monkeypatch: pytest.MonkeyPatch, silu: bool, chunk: int) -> None:
    monkeypatch.setattr(norm_module, "CHUNK", chunk)
    x, added, gamma, beta = (tensor.requires_grad_() for tensor in inputs())
    options = (GROUPS, 1e-6, silu)
    for gains in (gamma, gamma[:1].detach().requires_grad_()):  # its own for every image, or one for all
        for biases in (added, added[:1].detach().requires_grad_(), None):
            given = tuple(tensor for tensor in (x, gains, beta, biases) if tensor is not None)
            assert torch.autograd.gradcheck(
                lambda x, gains, beta, biases=None: _Fused.apply(x, biases, gains, beta, *options), given
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
def test_the_layer_equals_its_parts(silu: bool, dtype: torch.dtype) -> None:
    module, arguments = layer(silu), inputs(dtype)
    expected = reference(module, arguments[0].double(), *arguments[1:]).to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    result = module(arguments[0], *(tensor.to(exact) for tensor in arguments[1:]))
    torch.testing.assert_close(result, expected)


def test_bfloat16_is_rounded_once() -> None:
    """The error is that of rounding the result, not of computing in bfloat16."""
    module = layer()
    x, *rest = inputs(torch.bfloat16)
    result, exact = (
        module.float()(x, *(tensor.float() for tensor in rest)),
        reference(module.double(), x.double(), *rest),
    )
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-5)


def test_epsilon_is_added_to_the_variance() -> None:
    """On a faint input it decides the size of the result."""
    module, (x, *_) = layer(silu=False), inputs()
    none = torch.zeros(N, C, dtype=torch.float64)
    expected = F.group_norm(x * 1e-3, GROUPS, module.weight, module.bias, 1e-6)
    torch.testing.assert_close(fused(module, x * 1e-3, None, none, none), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(module(x * 1e-3), expected)


def test_a_large_mean_costs_few_digits() -> None:
    """The variance is a difference of sums; float32 sums bear a mean of a hundred deviations."""
    x = torch.randn(2, C, 16, 16, dtype=torch.float64) + 100
    module, none = GroupNorm(GROUPS, C, 1e-6, silu=False), torch.zeros(2, C)
    exact = F.group_norm(x.float().double(), GROUPS, eps=1e-6)
    assert (fused(module, x.float(), None, none, none).double() - exact).abs().max() < 1e-2


def test_any_memory_format_and_batch() -> None:
    module, (x, *_) = layer().float(), inputs(torch.bfloat16)
    torch.testing.assert_close(module(x.contiguous()), module(x))
    for image in range(N):
        torch.testing.assert_close(module(x[image : image + 1]), module(x)[image : image + 1])
    assert module(x.contiguous()).is_contiguous(memory_format=torch.channels_last)


def test_results_do_not_share_memory() -> None:
    """The rooms worked in are reused; what is handed out is not."""
    module, (x, *_) = layer().float(), inputs(torch.bfloat16)
    first = module(x)
    kept = first.clone()
    module(torch.randn_like(x))
    assert torch.equal(first, kept)
