"""What a layer chooses by itself does not depend on the batch, and what the configuration says reaches every layer."""

import pytest
import torch
import torch.nn.functional as F

from ddpm.networks.config import NetworkConfig
from ddpm.networks.norm import GroupNorm
from ddpm.networks.unet import Attention, UNet, Upsample


@pytest.mark.parametrize(("channels", "side", "folds"), [(64, 4, True), (64, 2, False), (16, 1, False), (8, 1, True)])
def test_upsampling_takes_one_formula_at_every_batch_size(monkeypatch, channels, side, folds):
    used, layer, folded = [], Upsample(channels), Upsample._folded
    monkeypatch.setattr(Upsample, "_folded", lambda self, dtype: used.append(True) or folded(self, dtype))
    for n in (1, 2, 16, 70):
        x = torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(n))
        used.clear()
        found = layer(x)
        assert bool(used) == folds
        plain = F.conv2d(
            x.repeat_interleave(2, 2).repeat_interleave(2, 3), layer.conv.weight, layer.conv.bias, padding=1
        )
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eps", [1e-4, 0.7])
@pytest.mark.parametrize("norm", [True, False])
def test_every_norm_has_the_configured_groups_and_eps(eps, norm):
    config = NetworkConfig(
        channels=12, channel_mult=[1, 2], blocks=1, attention=[4], groups=3, norm_eps=eps, mid_attention_norm=norm
    )
    norms = [module for module in UNet(config, (8, 8)).modules() if isinstance(module, GroupNorm)]
    assert {(module.num_groups, module.eps) for module in norms} == {(3, eps)}
    blocks, attentions = 2 + 4 + 2, 1 + 2 + norm  # down, up, middle; each level but the first, and the middle
    assert len(norms) == 2 * blocks + attentions + 1


@pytest.mark.parametrize("eps", [1e-4, 0.7])
def test_attention_is_the_plain_formula_after_a_norm_of_that_eps(eps):
    config = NetworkConfig(channels=12, groups=3, norm_eps=eps, head_dim=4)
    layer = Attention(config, 12).double()
    x = torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 3)
    groups = x.reshape(2, 3, 4, 15)
    h = (groups - groups.mean((2, 3), keepdim=True)) / (groups.var((2, 3), correction=0, keepdim=True) + eps).sqrt()
    h = h.reshape(2, 12, 15) * layer.group_norm.weight[:, None] + layer.group_norm.bias[:, None]
    layers = layer.to_q, layer.to_k, layer.to_v
    q, k, v = (torch.einsum("oc,ncp->nop", one.weight, h) + one.bias[:, None] for one in layers)
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        scores = torch.einsum("ncp,ncq->npq", q[:, rows], k[:, rows]) / 2
        heads.append(torch.einsum("npq,ncq->ncp", scores.softmax(-1), v[:, rows]))
    out = layer.to_out[0]
    expected = x + (torch.einsum("oc,ncp->nop", out.weight, torch.cat(heads, 1)) + out.bias[:, None]).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected)
