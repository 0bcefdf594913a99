"""The fused normalisation against PyTorch's parts, and its derivative against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.networks import norm as norm_module
from ddpm.networks.norm import GroupNorm

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


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])  # one image at a time, two, all
def test_equals_its_parts(monkeypatch: pytest.MonkeyPatch, silu: bool, chunk: int) -> None:
    monkeypatch.setattr(norm_module, "CHUNK", chunk)
    module, arguments = layer(silu), inputs()
    torch.testing.assert_close(module(*arguments), reference(module, *arguments))
    x, none = arguments[0], torch.zeros(N, C, dtype=torch.float64)
    torch.testing.assert_close(module(x), reference(module, x, none, none, none))


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_derivative(monkeypatch: pytest.MonkeyPatch, silu: bool, chunk: int) -> None:
    monkeypatch.setattr(norm_module, "CHUNK", chunk)
    module = layer(silu)
    arguments = [tensor.requires_grad_() for tensor in inputs()]

    def call(weight: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, rest)

    assert torch.autograd.gradcheck(call, (module.weight, module.bias, *arguments))
    assert torch.autograd.gradcheck(call, (module.weight, module.bias, arguments[0]))
    one_for_all = torch.randn(1, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (module.weight, module.bias, arguments[0], one_for_all))


def test_what_a_compiler_sees_is_the_same() -> None:
    module, (x, added, scale, shift) = layer(), inputs()
    weights = (module.weight[None] * (1 + scale), module.bias[None] * (1 + scale) + shift)
    plain = norm_module._plain(x, added, *weights, GROUPS, module.eps, True)
    torch.testing.assert_close(plain, reference(module, x, added, scale, shift))


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
    torch.testing.assert_close(
        module(x * 1e-3), F.group_norm(x * 1e-3, GROUPS, module.weight, module.bias, 1e-6), rtol=1e-9, atol=0
    )


def test_a_large_mean_costs_few_digits() -> None:
    """The variance is a difference of sums; float32 sums bear a mean of a hundred deviations."""
    x = torch.randn(2, C, 16, 16, dtype=torch.float64) + 100
    module = GroupNorm(GROUPS, C, 1e-6, silu=False)
    exact = F.group_norm(x.float().double(), GROUPS, eps=1e-6)
    assert (module(x.float()).double() - exact).abs().max() < 5e-3


def test_any_memory_format_and_batch() -> None:
    module, (x, *_) = layer(), inputs()
    torch.testing.assert_close(module(x.contiguous()), module(x))
    for image in range(N):
        torch.testing.assert_close(module(x[image : image + 1]), module(x)[image : image + 1])
    assert module(x).is_contiguous(memory_format=torch.channels_last)


def test_results_do_not_share_memory() -> None:
    """The rooms worked in are reused; what is handed out is not."""
    module, (x, *_) = layer(), inputs()
    first = module(x)
    kept = first.clone()
    module(torch.randn_like(x))
    assert torch.equal(first, kept)
