"""Weights with NaN or infinity are refused by every loader, and NaN is never written as a black picture."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm.cli import run
from ddpm.common.errors import UserError
from ddpm.common.pixels import final_images, save_grid, to_uint8
from ddpm.interop.convert import convert
from ddpm.model import load

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def broken(model, tmp_path):
    """A model folder in which one tensor holds NaN."""
    model.save(tmp_path / "broken")
    file = tmp_path / "broken" / WEIGHTS
    weights = load_file(file)
    weights["conv_out.bias"].fill_(float("nan"))
    save_file(weights, file, {"format": "pt"})
    return tmp_path / "broken"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_load_names_first_tensor_that_is_not_finite(broken, value):
    weights = load_file(broken / WEIGHTS)
    weights["conv_out.bias"].fill_(value)
    save_file(weights, broken / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"not finite .* first in conv_out\.bias"):
        load(broken)


def test_load_refuses_float64_weights_that_overflow_float32(broken):
    weights = load_file(broken / WEIGHTS)
    weights["conv_out.bias"] = torch.full_like(weights["conv_out.bias"], 1e300, dtype=torch.float64)
    save_file(weights, broken / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match="not finite"):
        load(broken)


def test_convert_refuses_pickled_weights_that_are_not_finite(broken, tmp_path):
    weights = load_file(broken / WEIGHTS)
    (broken / WEIGHTS).unlink()
    torch.save(weights, broken / "unet" / "diffusion_pytorch_model.bin")
    for source in (broken, broken / "unet" / "diffusion_pytorch_model.bin"):
        with pytest.raises(UserError, match=r"not finite .* first in conv_out\.bias"):
            convert(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "MODEL", "--num", "1", "--steps", "2", "--out", "OUT.png"],
        ["trace", "MODEL", "--steps", "2", "--out", "OUT.png"],
        ["restore", "MODEL", "IMAGE", "--task", "denoise", "--noise", "0.1", "--steps", "2", "--out", "OUT.png"],
        ["edit", "MODEL", "IMAGE", "--strength", "0.5", "--out", "OUT.png"],
        ["evaluate", "MODEL", "--data", "FOLDER", "--metrics", "levels", "--num", "2", "--out", "OUT.json"],
        ["convert", "MODEL", "OUT"],
        ["train", "digits", "--init", "MODEL", "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_commands_refuse_weights_that_are_not_finite_in_one_line(broken, tmp_path, capsys, command):
    (tmp_path / "images").mkdir()
    image = save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "images" / "0.png", gap=0)
    names = {"MODEL": broken, "IMAGE": image, "FOLDER": image.parent}
    out = tmp_path / "out"
    words = [str(names.get(word, word)).replace("OUT", str(out)) for word in command]
    assert run(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm: error: ")
    assert error.count("\n") == 1
    assert "conv_out.bias" in error
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("clip", ["static", "dynamic", None])
def test_sampling_refuses_images_that_are_not_finite(model, clip):
    model.network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite .* try precision fp32"):
        model.sample(2, steps=2, clip=clip)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_refuse_numbers_that_are_not_finite(value):
    images = torch.zeros(2, 1, 4, 4)
    images[1, 0, 2, 3] = value
    for convert_pixels in (to_uint8, final_images):
        with pytest.raises(UserError, match="not finite"):
            convert_pixels(images)
    assert torch.equal(final_images(images[:1]), images[:1])
