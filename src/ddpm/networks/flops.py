"""What a forward pass costs, in floating-point operations an image."""

import copy

import torch
from torch import Tensor, nn

from ddpm.networks.layers import Attention, Conv, Linear
from ddpm.networks.unet import UNet


def count_flops(network: UNet) -> int:
    """Operations of one forward pass for one image of the network's size: 2 a multiply-add, counting convolutions,
    linear layers and the two matrix products of attention. A training step costs three times as much.

    It counts the network as its paper writes it, whatever shortcut computes it; nothing is computed.
    """
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, Conv):
            total += 2 * output.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        elif isinstance(layer, Linear):
            total += 2 * output.numel() * layer.in_features
        elif isinstance(layer, Attention):
            channels, tokens = output.shape[1], output.shape[2] * output.shape[3]
            total += 2 * 2 * tokens * tokens * channels

    shadow = copy.deepcopy(network).to("meta").eval()
    for layer in shadow.modules():
        layer.register_forward_hook(add)
    x_t = torch.empty(1, shadow.in_channels, *shadow.image_size, device="meta")
    labels = None if shadow.num_classes is None else torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad():
        shadow(x_t, torch.zeros(1, device="meta"), labels)
    return total
