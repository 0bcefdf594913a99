"""The model folder against Diffusers itself, both ways, every tensor random."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from interop_cases import (
    CELEBAHQ,
    CIFAR10,
    SMALL,
    diffusers_folder,
    make_old,
    random_unet2d,
    relative_difference,
    save,
    small_network,
)
from safetensors.torch import load_file, save_file

from ddpm.common.randomness import image_generator
from ddpm.diffusion.config import DiffusionConfig
from ddpm.interop.diffusers import load_folder

NETWORKS = {
    "paper": {},
    "scale_shift": {"conditioning": "scale_shift"},
    "mid_without_norm": {"conditioning": "scale_shift", "mid_attention_norm": False},
    "no_mid_attention": {"mid_attention": False},
    "no_attention": {"attention": [], "mid_attention": False},
    "heads": {"head_dim": 4, "attention": [8, 4]},
    "same_heads_everywhere": {"heads": 2},
    "heads_wider_than_the_first_level": {"channel_mult": [1, 4], "head_dim": 16},
    "resnet": {"resample": "resnet", "attention": [8]},
    "diffusers_defaults": {"freq_shift": 0, "flip_sin_to_cos": True, "downsample_padding": 1, "norm_eps": 1e-5},
    "one_level": {"channel_mult": [2], "attention": []},
    "half_width": {"channel_mult": [1, 1.5], "blocks": 2},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_unet2dmodel_opens_ours_and_answers_the_same(tmp_path, name):
    network = small_network(**NETWORKS[name])
    folder = save(tmp_path / "model", network)
    theirs = UNet2DModel.from_pretrained(folder, subfolder="unet")
    assert relative_difference(network, theirs) < 1e-5
    again = load_folder(folder)
    assert relative_difference(again.network, network) == 0
    assert again.image_shape == (3, 8, 8)


def test_conditional_non_square_learned_variance_opens_in_unet2dmodel(tmp_path):
    network = small_network(num_classes=4, out_channels=6, size=(16, 8))
    diffusion = DiffusionConfig(timesteps=50, variance="learned_range", loss="hybrid").build()
    extra = {"class_names": ["a", "b", "c"], "null_label": 3, "provenance": {"note": "ü"}}
    folder = save(tmp_path / "model", network, diffusion, extra=extra)
    theirs = UNet2DModel.from_pretrained(folder, subfolder="unet")
    assert theirs.config.num_class_embeds == 4
    assert relative_difference(network, theirs, (16, 8)) < 1e-5
    parts = load_folder(folder)
    assert parts.extra == extra
    assert parts.image_shape == (3, 16, 8)
    assert parts.diffusion.variance == "learned_range"
    assert parts.network.num_classes == 4


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpmpipeline_draws_ours(tmp_path, variance):
    network = small_network()
    diffusion = DiffusionConfig(timesteps=20, variance=variance).build()
    folder = save(tmp_path / "model", network, diffusion)
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2,
        generator=[image_generator(0, i) for i in range(2)],
        num_inference_steps=20,
        output_type="np",
        return_dict=False,
    )[0]
    generators = [image_generator(0, i) for i in range(2)]
    x = torch.stack([torch.randn(3, 8, 8, generator=generator) for generator in generators])
    loaded = load_folder(folder)
    with torch.no_grad():  # Ho et al.'s algorithm 2, written out
        for t in range(19, -1, -1):
            epsilon = loaded.network(x, torch.full((2,), float(t)))
            x_0 = loaded.diffusion.predicted_x_0(epsilon, x, t).clamp(-1, 1)
            posterior = loaded.diffusion.posterior(t, t - 1)
            x = posterior.mean(x_0, x)
            if t > 0:
                sigma = (posterior.variance if variance == "fixed_small" else posterior.beta) ** 0.5
                x = x + sigma * torch.stack([torch.randn(3, 8, 8, generator=generator) for generator in generators])
    assert np.abs((x.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy() - theirs).max() < 1 / 255


THEIRS = {
    "small": SMALL,
    "their_defaults": {
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
    },
    "classes": SMALL | {"num_class_embeds": 5},
    "resnet_blocks": SMALL
    | {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    "head_of_all_channels": SMALL | {"attention_head_dim": 16},
    "heads_wider_than_the_first_level": SMALL | {"block_out_channels": [8, 32], "attention_head_dim": 16},
    "rectangle": SMALL | {"sample_size": [8, 16]},
    "upright_rectangle": SMALL | {"sample_size": [16, 8]},
    "dropout": SMALL | {"dropout": 0.3, "norm_eps": 1e-4},
}


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_opens_here_and_comes_back(tmp_path, name):
    theirs = random_unet2d(**THEIRS[name])
    size = THEIRS[name]["sample_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    parts = load_folder(diffusers_folder(tmp_path / "theirs", theirs))
    assert relative_difference(parts.network, theirs, size) < 1e-5
    folder = save(tmp_path / "ours", parts.network, parts.diffusion)
    back = UNet2DModel.from_pretrained(folder, subfolder="unet")
    assert relative_difference(theirs, back, size) < 1e-6
    assert parts.network.config.dropout == theirs.config.dropout == back.config.dropout
    assert parts.network.image_size == size
    back_size = back.config.sample_size
    assert ((back_size, back_size) if isinstance(back_size, int) else tuple(back_size)) == size


def test_cifar10_at_full_width_in_the_old_layout_with_the_old_names(tmp_path):
    theirs = random_unet2d(**CIFAR10)
    scheduler = DDPMScheduler(variance_type="fixed_large")
    parts = load_folder(make_old(diffusers_folder(tmp_path / "model", theirs, scheduler)))
    assert sum(p.numel() for p in parts.network.parameters()) == 35_746_307
    assert parts.diffusion.variance == "fixed_large"
    assert parts.diffusion.schedule.timesteps == 1000
    assert relative_difference(parts.network, theirs, (32, 32), n=1) < 1e-5


def test_celebahq_at_full_width_in_the_old_layout_with_the_old_names(tmp_path):
    theirs = random_unet2d(**CELEBAHQ)
    parts = load_folder(make_old(diffusers_folder(tmp_path / "model", theirs)))
    assert sum(p.numel() for p in parts.network.parameters()) == 113_673_219
    assert parts.diffusion.variance == "fixed_small"
    assert relative_difference(parts.network, theirs, (32, 32), n=1) < 1e-5


def test_ddim_scheduler_inside(tmp_path):
    theirs = random_unet2d(**SMALL)
    scheduler = DDIMScheduler(num_train_timesteps=20, beta_schedule="scaled_linear", prediction_type="v_prediction")
    parts = load_folder(make_old(diffusers_folder(tmp_path / "model", theirs, scheduler)))
    assert parts.diffusion.prediction == "v"
    assert torch.allclose(parts.diffusion.schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=1e-5)


def test_attention_stored_as_one_by_one_convolutions(tmp_path):
    theirs = random_unet2d(**SMALL)
    folder = diffusers_folder(tmp_path / "model", theirs)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".attentions." in name and tensors[name].ndim == 2]:
        tensors[name] = tensors[name][:, :, None, None].contiguous()
    save_file(tensors, file)
    assert relative_difference(load_folder(folder).network, theirs) < 1e-5


def test_half_precision_variant(tmp_path):
    theirs = random_unet2d(**SMALL).half()
    folder = tmp_path / "model"
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(folder, variant="fp16")
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    network = load_folder(folder).network
    assert next(network.parameters()).dtype == torch.float32
    assert relative_difference(network, theirs.float()) < 1e-5


def test_shards(tmp_path):
    theirs = random_unet2d(**SMALL)
    folder = diffusers_folder(tmp_path / "model", theirs)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    theirs.save_pretrained(folder / "unet", max_shard_size="20KB")
    assert len(list(folder.glob("unet/*-of-*.safetensors"))) > 1
    assert relative_difference(load_folder(folder).network, theirs) < 1e-5


def test_weights_can_be_stored_in_half_precision(tmp_path):
    network = small_network()
    folder = save(tmp_path / "model", network, dtype=torch.float16)
    assert all(
        t.dtype == torch.float16 for t in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()
    )
    assert relative_difference(load_folder(folder).network, network) < 1e-2


def test_what_diffusers_cannot_express_says_so_and_comes_back(tmp_path):
    two_heads = [{"heads": 2, "attention": attended} for attended in ([8, 4], [8])]  # the middle is as wide as level 4
    for config in ({"mid_attention_norm": False}, *two_heads, {"time_channels": 16}):
        network = small_network(**config)
        with pytest.warns(UserWarning, match="Diffusers cannot open"):
            folder = save(tmp_path / "model", network)
        assert json.loads((folder / "model_index.json").read_text())["unet"] == ["ddpm.networks", "UNet"]
        assert "only ddpm opens it" in (folder / "README.md").read_text()
        with pytest.raises(Exception, match=r"UNet|ddpm"):
            DDPMPipeline.from_pretrained(folder)
        assert relative_difference(load_folder(folder).network, network) == 0
        assert load_folder(folder).network.config == network.config


def test_a_shift_of_frequencies_between_whole_numbers_is_kept(tmp_path):
    """Diffusers takes any number; cut to a whole one, every timestep would look like another."""
    theirs = random_unet2d(**SMALL | {"freq_shift": 0.5})
    assert relative_difference(load_folder(diffusers_folder(tmp_path / "theirs", theirs)).network, theirs) < 1e-5
