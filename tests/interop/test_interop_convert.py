"""`convert`: pickles become safetensors, and only tensors are ever unpickled."""

import os
import pickle

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from guided_reference import GuidedUNet
from interop_cases import (
    SMALL,
    diffusers_folder,
    make_old,
    old_name,
    random_unet2d,
    randomized,
    relative_difference,
    small_network,
)

from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.interop.convert import convert
from ddpm.interop.diffusers import load_folder, save_folder


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_old_folder_with_a_bin_becomes_one_that_diffusers_opens(tmp_path):
    theirs = random_unet2d(**SMALL)
    old = make_old(diffusers_folder(tmp_path / "old", theirs), pickled=True)
    with pytest.raises(UserError, match="ddpm convert"):
        load_folder(old)
    convert(old, tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, theirs) < 1e-5
    assert relative_difference(DDPMPipeline.from_pretrained(tmp_path / "new").unet, theirs) < 1e-6


def test_new_folder_with_a_bin(tmp_path):
    theirs = random_unet2d(**SMALL)
    folder = tmp_path / "pickled"
    diffusers_folder(folder, theirs)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    theirs.save_pretrained(folder / "unet", safe_serialization=False)
    convert(folder, tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, theirs) < 1e-5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": {f"model.{k}": v for k, v in t.items()}, "epoch": 3},
        lambda t: {"model": t, "step": torch.tensor(5)},
        lambda t: {"model": {k: v + 1 for k, v in t.items()}, "ema": t, "opt": {"state": {}}},
        lambda t: {"model": t, "ema": {"decay": 0.999}},
    ],
)
def test_weights_file_beside_its_configuration(tmp_path, wrap):
    theirs = random_unet2d(**SMALL)
    folder = diffusers_folder(tmp_path / "folder", theirs)
    file = folder / "unet" / "weights.ckpt"
    torch.save(wrap({old_name(name): tensor for name, tensor in theirs.state_dict().items()}), file)
    convert(file, tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, theirs) < 1e-5


def test_guided_diffusion_file(tmp_path):
    theirs = randomized(GuidedUNet(num_head_channels=16, num_classes=4))
    file = tmp_path / "64x64_diffusion.pt"
    torch.save(theirs.state_dict(), file)
    with pytest.raises(UserError, match="--image_size"):
        convert(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    convert(file, tmp_path / "new", flags="--image_size 16 --num_head_channels 16")
    parts = load_folder(tmp_path / "new")
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 800.0]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.allclose(parts.network(x, t, labels), theirs(x, t, labels), rtol=1e-4, atol=1e-5)
    assert parts.extra["provenance"]["converted from"] == "64x64_diffusion.pt"


def test_our_own_folder_keeps_what_it_knows(tmp_path):
    extra = {"class_names": ["cat", "dog"], "null_label": 2, "provenance": {"config": {"data": {"source": "pets"}}}}
    network = small_network(num_classes=3)
    save_folder(tmp_path / "a", network, DiffusionConfig().build(), image_shape=(3, 8, 8), extra=extra)
    convert(tmp_path / "a", tmp_path / "b")
    assert load_folder(tmp_path / "b").extra == extra
    assert relative_difference(network, UNet2DModel.from_pretrained(tmp_path / "b", subfolder="unet")) < 1e-5


def test_existing_destination_is_kept_unless_told(tmp_path):
    source = diffusers_folder(tmp_path / "source", random_unet2d(**SMALL))
    convert(source, tmp_path / "new")
    before = (tmp_path / "new" / "ddpm.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="exists"):
        convert(source, tmp_path / "new")
    assert (tmp_path / "new" / "ddpm.json").stat().st_mtime_ns == before
    convert(source, tmp_path / "new", overwrite=True)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value, 2))])
def test_a_malicious_pickle_never_runs(tmp_path, name, save):
    folder = make_old(diffusers_folder(tmp_path / "folder", random_unet2d(**SMALL)))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    trap = tmp_path / "sprung"
    save({"conv_in.weight": Malicious(trap)}, folder / name)
    for attempt in (lambda: load_folder(folder), lambda: convert(folder, tmp_path / "new")):
        with pytest.raises(UserError, match=r"pickle|safetensors file") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert not trap.exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"not a file of weights", pickle.dumps([1, 2], 2), pickle.dumps({"a": 1}, 2)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_a_file_of_something_else(tmp_path, content, suffix):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError):
        convert(file, tmp_path / "new")


def test_weights_in_the_hubs_cache_have_their_configuration_beside_their_name(tmp_path):
    """The file itself lies elsewhere, among those of all revisions."""
    theirs = random_unet2d(**SMALL)
    snapshot = diffusers_folder(tmp_path / "snapshots" / "0123abc", theirs)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        file.symlink_to(file.rename(tmp_path / "blobs" / f"{number:040x}"))
    convert(snapshot / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, theirs) < 1e-5


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b"<!doctype html>"])
def test_what_was_fetched_in_place_of_the_weights_is_no_dangerous_pickle(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"not written by PyTorch \(a Git LFS pointer, or a web page\?\): download"):
        convert(tmp_path / "x.pt", tmp_path / "new")


def test_weights_of_an_unknown_kind(tmp_path):
    torch.save({"layer1.0.weight": torch.zeros(3)}, tmp_path / "resnet.pt")
    with pytest.raises(UserError, match="unknown kind"):
        convert(tmp_path / "resnet.pt", tmp_path / "new")
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(UserError, match="end in"):
        convert(tmp_path / "x.h5", tmp_path / "new")
    with pytest.raises(UserError, match="nothing to convert"):
        convert(tmp_path / "nowhere", tmp_path / "new")
