"""Networks with every tensor random (a near-zero last layer would hide everything), ours and Diffusers'."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.interop.diffusers import save_folder
from ddpm.networks import NetworkConfig, UNet

# google/ddpm-cifar10-32 and google/ddpm-celebahq-256 (bedroom, church and cat are the same), as they are published
CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CELEBAHQ = CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    "sample_size": 256,
}
SMALL = CIFAR10 | {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 8,
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor random, at a scale that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            bound = 2 / (tensor[0].numel() if tensor.ndim > 1 else 25) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
            if "norm" in name and name.endswith("weight"):
                tensor.add_(1)
    return module.eval()


def random_unet2d(**config: Any) -> UNet2DModel:
    """A `UNet2DModel` with every tensor random, without first initialising it."""
    with torch.device("meta"):
        network = UNet2DModel(**config)
    return randomized(network.to_empty(device="cpu"))


def small_network(num_classes: int | None = None, out_channels: int = 3, size=(8, 8), **config: Any) -> UNet:
    fields = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "groups": 4, **config}
    return randomized(UNet(NetworkConfig(**fields), size, 3, out_channels, num_classes))


def inputs(network: nn.Module, size=(8, 8), n: int = 2):
    """(x_t, t, labels or None) for a network of ours or of Diffusers'."""
    generator = torch.Generator().manual_seed(1)
    classes = network.num_classes if isinstance(network, UNet) else network.config.num_class_embeds
    x_t = torch.randn(n, 3, *size, generator=generator)
    return x_t, torch.tensor([3.0, 907.0][:n]), None if classes is None else torch.arange(n) % classes


@torch.no_grad()
def relative_difference(ours: nn.Module, theirs: nn.Module, size=(8, 8), n: int = 2) -> float:
    """Largest difference of what the two answer, relative to the largest answer."""
    x_t, t, labels = inputs(theirs, size, n)
    answers = [network(x_t, t, labels) for network in (ours, theirs)]
    a, b = [answer if isinstance(answer, torch.Tensor) else answer.sample for answer in answers]
    return float((a - b).abs().max() / b.abs().max())


def save(folder: Path, network: UNet, diffusion: GaussianDiffusion | None = None, **options: Any) -> Path:
    options = {"extra": {}, "image_shape": (3, *network.image_size), **options}
    save_folder(folder, network, diffusion or DiffusionConfig(timesteps=50).build(), **options)
    return folder


def diffusers_folder(folder: Path, unet: UNet2DModel, scheduler: Any = None) -> Path:
    DDPMPipeline(unet, scheduler or DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    return folder


def make_old(folder: Path, *, names: bool = True, pickled: bool = False) -> Path:
    """Rewrite a folder that Diffusers wrote as its first versions did: all at the root, old names of attention."""
    for file in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        file.rename(folder / file.name)
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    if names:
        tensors = {old_name(name): tensor for name, tensor in tensors.items()}
        assert any("query" in name for name in tensors)
    if pickled:
        weights.unlink()
        torch.save(tensors, weights.with_suffix(".bin"))
    else:
        save_file(tensors, weights, metadata={"format": "pt"})
    for directory in ("unet", "scheduler"):
        (folder / directory).rmdir()
    return folder


def old_name(name: str) -> str:
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
