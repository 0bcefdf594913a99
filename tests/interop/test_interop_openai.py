"""Improved- and guided-diffusion checkpoints against an independent implementation of their network."""

import pytest
import torch
from diffusers import UNet2DModel
from guided_reference import GuidedUNet
from interop_cases import randomized, relative_difference

from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.schedule import make_betas
from ddpm.interop.diffusers import load_folder, save_folder
from ddpm.interop.openai import from_openai, parse_flags

# name: (how the reference is built, the flags that a user gives, whether UNet2DModel can express it)
CHECKPOINTS = {
    "improved_cifar10": (
        {"channel_mult": (1, 2, 2), "blocks": 3, "attention": (2, 4), "num_heads": 4, "out_channels": 6},
        "--image_size 16 --num_channels 32 --num_res_blocks 3 --learn_sigma True --dropout 0.3 --channel_mult 1,2,2 "
        "--attention_resolutions 8,4 --diffusion_steps 4000 --noise_schedule cosine",
        True,
    ),
    "improved_lsun": (
        {"channel_mult": (1, 2), "blocks": 2, "num_heads": 1, "out_channels": 6, "scale_shift": False},
        "--image_size 16 --num_heads 1 --learn_sigma True --use_scale_shift_norm False --attention_resolutions 8",
        True,
    ),
    "improved_two_heads": ({"channel_mult": (1, 3), "num_heads": 2}, "--image_size 16 --num_heads 2", True),
    "improved_imagenet64": (
        {"channel_mult": (1, 2, 3), "attention": (2, 4), "num_heads": 4},
        "--image_size 16 --num_heads 4",
        False,
    ),
    "guided_64": (
        {
            "channel_mult": (1, 2),
            "attention": (1, 2),
            "num_head_channels": 16,
            "resblock_updown": True,
            "new_order": True,
            "num_classes": 10,
            "out_channels": 6,
        },
        "--image_size 16 --num_head_channels 16 --resblock_updown True --use_new_attention_order True "
        "--class_cond True --learn_sigma True --noise_schedule cosine --use_fp16 True",
        True,
    ),
    "guided_256": (
        {"channel_mult": (1, 1, 2), "blocks": 2, "num_head_channels": 16, "resblock_updown": True, "attention": (2, 4)},
        "--image_size 16 --num_head_channels 16 --resblock_updown True",
        True,
    ),
    "guided_512": (
        {"channels": 64, "channel_mult": (0.5, 1), "num_head_channels": 32, "resblock_updown": True},
        "--image_size 16 --num_head_channels 32 --channel_mult 0.5,1",
        False,
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:.*Diffusers cannot open")
def test_network_answers_as_theirs(tmp_path, name):
    built, flags, expressible = CHECKPOINTS[name]
    theirs = randomized(GuidedUNet(**built))
    parts = from_openai(theirs.state_dict(), parse_flags(flags), name)
    assert difference(parts.network, theirs) < 1e-5
    folder = tmp_path / "model"
    save_folder(folder, parts.network, parts.diffusion, image_shape=parts.image_shape, extra=parts.extra)
    assert difference(load_folder(folder).network, theirs) < 1e-5
    if expressible:
        unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
        assert relative_difference(parts.network, unet, (16, 16)) < 1e-5


@torch.no_grad()
def difference(ours, theirs):
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([7.0, 640.0])
    labels = None if theirs.num_classes is None else torch.tensor([3, 9])
    a, b = ours(x, t, labels), theirs(x, t, labels)
    return float((a - b).abs().max() / b.abs().max())


def state(**built):
    return randomized(GuidedUNet(**built)).state_dict()


def test_the_order_of_q_k_v_matters():
    """Else the tests above would prove nothing of the permutation."""
    theirs = randomized(GuidedUNet(num_heads=4))
    wrong = from_openai(theirs.state_dict(), parse_flags("--image_size 16 --use_new_attention_order True"), "x")
    assert difference(wrong.network, theirs) > 1e-3


def test_process():
    parts = from_openai(state(), parse_flags("--image_size 16"), "x")
    assert torch.equal(parts.diffusion.schedule.betas, DiffusionConfig().build_schedule().betas)
    assert (parts.diffusion.prediction, parts.diffusion.variance) == ("epsilon", "fixed_large")
    parts = from_openai(state(), parse_flags("--image_size 16 --predict_xstart True --sigma_small True"), "x")
    assert (parts.diffusion.prediction, parts.diffusion.variance) == ("x_0", "fixed_small")
    parts = from_openai(state(out_channels=6), parse_flags("--image_size 16 --diffusion_steps 500"
                        " --rescale_timesteps False"), "x")  # fmt: skip
    assert parts.diffusion.variance == "learned_range"
    assert torch.equal(parts.diffusion.schedule.betas, make_betas("linear", 500, 2e-4, 0.04))


def test_flags_of_the_network_that_the_weights_do_not_show():
    """Their defaults: four heads and no dropout (improved_diffusion/script_util.py)."""
    parts = from_openai(state(num_heads=4), parse_flags("--image_size 16"), "x")
    assert parts.network.mid_block.attentions[0].heads == 4
    assert parts.network.config.dropout == 0
    parts = from_openai(state(num_heads=4), parse_flags("--image_size 16 --dropout 0.3 --num_heads 2"), "x")
    assert parts.network.mid_block.attentions[0].heads == 2
    assert parts.network.config.dropout == 0.3


def test_rescaled_timesteps_are_a_sub_chain():
    """Step 4k of 4,000 was shown to the network as k: its ᾱ must be that of the k-th step here."""
    flags = parse_flags("--image_size 16 --diffusion_steps 4000 --noise_schedule cosine")
    schedule = from_openai(state(), flags, "x").diffusion.schedule
    original = (1 - make_betas("cosine", 4000)).cumprod(0)
    assert schedule.timesteps == 1000
    for k in (0, 1, 500, 999):
        assert schedule.alphas_cumprod[k] == pytest.approx(float(original[4 * k]), rel=1e-9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "image_size"),
        ("--image_size", "pairs"),
        ("--image_size 16 --channel_mult '1,2", "quot"),
        ("--image_size 16 --num_head_chanels 16", "did you mean num_head_channels"),
        ("--image_size 16 --noise_schedule sigmoid", "noise_schedule"),
        ("--image_size 16 --num_heads 3", "heads"),
        ("--image_size 16 --num_head_channels 0", "heads"),
        ("--image_size 16 --num_head_channels 48", "heads"),
        ("--image_size 16 --num_heads_upsample 2", "num_heads_upsample"),
        ("--image_size 16 --diffusion_steps 100", "rescaled"),
        ("--image_size 15", "divide"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError, match=message):
        from_openai(state(), parse_flags(flags), "x.pt")


def test_what_is_no_ddpm_is_refused():
    for out_channels in (3, 6):
        upsampler = state(out_channels=out_channels)
        upsampler["input_blocks.0.0.weight"] = torch.randn(32, 6, 3, 3)
        with pytest.raises(UserError, match="an upsampler"):
            from_openai(upsampler, parse_flags("--image_size 16"), "64_256.pt")
    classifier = {name: tensor for name, tensor in state().items() if not name.startswith("output_blocks")}
    with pytest.raises(UserError, match="not a U-Net"):
        from_openai(classifier, parse_flags("--image_size 16"), "64x64_classifier.pt")
    incomplete = state()
    del incomplete["middle_block.1.proj_out.bias"]
    with pytest.raises(UserError, match=r"lacks mid_block\.attentions\.0\.to_out\.0\.bias"):
        from_openai(incomplete, parse_flags("--image_size 16"), "x.pt")
