"""One image costs about one image: small forward passes are used where they give the bits of the full batch."""

import pytest
import torch
from torch import nn

from ddpm.diffusion.config import DiffusionConfig
from ddpm.model import Model
from ddpm.networks import inference
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet

FULL = 16


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)
    network = UNet(config, (8, 8), 1, 1, num_classes=3)
    with torch.no_grad():
        for parameter in network.parameters():  # the layers that start near zero would hide differences
            parameter.normal_(0, 0.2)
    diffusion = DiffusionConfig(schedule="cosine", timesteps=20).build()
    return Model(network, diffusion, image_shape=(1, 8, 8), class_names=["a", "b"], null_label=2)


def rows_of(model, monkeypatch) -> list[int]:
    """The rows of every forward pass from now on."""
    rows: list[int] = []
    forward = UNet.forward

    def counted(self, x_t, *rest):
        rows.append(len(x_t))
        return forward(self, x_t, *rest)

    monkeypatch.setattr(UNet, "forward", counted)
    return rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_few_images_have_the_bits_of_the_full_batch(model, precision, guidance):
    options = {"steps": 3, "guidance": guidance, "precision": precision, "batch_size": FULL}
    full = model.sample(FULL, **options)
    for count in (1, 3, 5):
        assert torch.equal(model.sample(count, **options), full[:count])


def test_small_forward_passes_are_taken_where_the_bits_agree(model, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    model._copies.smallest_batch(torch.float32, 3, FULL, rows=2)
    rows = rows_of(model, monkeypatch)
    model.sample(3, steps=2, guidance=2.0, precision="fp32", batch_size=FULL)
    assert rows == [8, 8]  # 3 images are padded to 4, and guidance doubles them


def test_a_layer_that_depends_on_the_batch_keeps_the_full_batch(model, monkeypatch):
    """The second of three layers gives its last image another bit below 8 rows."""

    def outputs(network, dtype, rows):
        planted = torch.ones(rows, 2)
        planted[-1] = 1 if rows >= 8 else 1 + torch.finfo(torch.float32).eps
        return [torch.ones(rows, 2), planted, torch.ones(rows, 2)]

    monkeypatch.setattr(inference, "layer_outputs", outputs)
    assert [model._copies.smallest_batch(torch.float32, n, FULL) for n in (1, 5, 9)] == [8, 8, FULL]
    assert model._copies.smallest_batch(torch.float32, 1, FULL, rows=2) == 4  # guidance: 8 rows


def test_the_smallest_batch_holds_the_images_exactly_if_it_can(model, monkeypatch):
    monkeypatch.setattr(inference, "layer_outputs", lambda network, dtype, rows: [torch.ones(rows)])
    found = [model._copies.smallest_batch(torch.float32, images, FULL) for images in range(1, 10)]
    assert found == [1, 2, 4, 4, 8, 8, 8, 8, FULL]


def test_batches_are_compared_with_the_full_one_of_their_guidance(model, monkeypatch):
    """Four rows are one thing beside 16, and another beside the 32 that guidance makes of them."""
    monkeypatch.setattr(inference, "layer_outputs", lambda network, dtype, rows: [torch.full((rows,), rows > FULL)])
    assert model._copies.smallest_batch(torch.float32, 4, FULL) == 4
    assert model._copies.smallest_batch(torch.float32, 2, FULL, rows=2) == FULL
    assert model._copies.smallest_batch(torch.float32, 4, FULL) == 4


def test_batches_are_compared_again_when_the_weights_have_changed(model, monkeypatch):
    """Weights of 0 give the same bits in every shape, and others need not."""
    bias = model.network.conv_out.bias

    def outputs(network, dtype, rows):
        return [torch.full((rows,), 0.0 if not bias.any() else float(rows))]

    monkeypatch.setattr(inference, "layer_outputs", outputs)
    with torch.no_grad():
        bias.zero_()
        assert model._copies.smallest_batch(torch.float32, 2, FULL) == 2
        bias.add_(1)
        assert model._copies.smallest_batch(torch.float32, 2, FULL) == FULL


def test_layer_outputs_are_those_of_the_same_images_in_any_batch(model):
    network = model.network.double()
    few, many = (inference.layer_outputs(network, torch.float64, rows) for rows in (2, 5))
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(few) == len(many) > len(layers)
    for ours, theirs in zip(few, many, strict=True):
        assert torch.allclose(ours, theirs[:2], atol=1e-9)
    assert not torch.allclose(many[-1][0], many[-1][1])


def test_full_and_gradient_batches_are_as_asked(model, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    denoiser = model.denoiser(torch.tensor([0]), batch_size=4, precision="fp32")
    rows = rows_of(model, monkeypatch)
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    denoiser(x, 10)
    assert rows == [4]  # a backward pass is not compared
    assert model._copies.smallest_batch(torch.float32, 4, 4) == 4


def test_what_was_found_with_guidance_is_not_taken_for_a_batch_without(model, monkeypatch):
    """8 images of 16 are 16 of 32 rows with guidance; without, 8 of 32 images are 8 of 32 rows, and differ here."""
    monkeypatch.setattr(inference, "layer_outputs", lambda network, dtype, rows: [torch.full((rows,), rows >= 16)])
    assert model._copies.smallest_batch(torch.float32, 8, 16, rows=2) == 8
    assert model._copies.smallest_batch(torch.float32, 8, 32) == 32
