"""Folders that a stranger made: one clear line, nothing outside them read, no memory spent on an absurd one."""

import json
import os
import shutil
import tracemalloc

import pytest
import torch
from diffusers import DDPMScheduler, IPNDMScheduler, UNet2DModel
from interop_cases import SMALL, edit_json, random_unet2d, relative_difference, small_network
from safetensors.torch import load_file, save_file

from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.interop.diffusers import load_folder, save_folder
from ddpm.interop.storage import read_json


@pytest.fixture
def folder(tmp_path):
    network, extra = small_network(num_classes=3), {"class_names": ["a", "b"], "null_label": 2}
    save_folder(tmp_path / "model", network, DiffusionConfig().build(), image_shape=(3, 8, 8), extra=extra)
    return tmp_path / "model"


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        load_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_latent_diffusion_pipeline_is_no_model_of_pictures(folder):
    """Its network opens like any other; a part that is named as absent is none."""
    edit_json(folder / "model_index.json", safety_checker=[None, None], feature_extractor=None)
    load_folder(folder)
    edit_json(folder / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])
    refused(folder, "LDMPipeline with vqvae", "Diffusers")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"center_input_sample": True}, "center_input_sample"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"time_embedding_dim": 99}, "time_embedding_dim"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "on the way up"),
        ({"up_block_types": ["UpBlock2D"]}, "equally long"),
        ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "upsample_type": "resnet"}, "one way"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": 9}, "divide"),
        ({"out_channels": 4}, "4 out"),
        ({"norm_num_groups": 5}, "groups"),
        ({"layers_per_block": "two"}, "layers_per_block"),
        ({"block_out_channels": [16, 32]}, "conv_in.weight"),
        ({"layers_per_block": 2}, "lacks"),
        ({"num_class_embeds": None}, "class_embedding.weight"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    ],
)
def test_configurations_that_cannot_be_expressed(folder, change, word):
    edit_json(folder / "unet" / "config.json", **change)
    if word in ("conv_in.weight", "lacks"):
        refused(folder, "does not fit")
    else:
        refused(folder, word)


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": [2**40, 2**40]},
        {"block_out_channels": [65536, 65536], "norm_num_groups": 4},
        {"layers_per_block": 10**9},
        {"layers_per_block": 16, "block_out_channels": [65536] * 2},
        {"sample_size": 10**12},
        {"num_class_embeds": 10**12},
        {"num_class_embeds": 10**7},
        {"in_channels": 60000, "out_channels": 60000},
    ],
)
def test_absurd_sizes_take_no_memory(folder, change):
    edit_json(folder / "unet" / "config.json", **change)
    (folder / "ddpm.json").write_text("{}")
    tracemalloc.start()
    refused(folder)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"beta_schedule": "laplace"}, "beta_schedule"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"variance_type": "learned"}, "variance_type"),
        ({"variance_type": "learned_range"}, "out_channels"),
        ({"beta_end": 2.0}, "beta_end"),
        ({"num_train_timesteps": 10**15}, "num_train_timesteps"),
        ({"trained_betas": [0.1, -0.2]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "zero-terminal-SNR"),
        ({"clip_sample_range": 2.0}, "clip_sample_range is 2"),
    ],
)
def test_schedulers_that_cannot_be_expressed(folder, change, word):
    edit_json(folder / "scheduler" / "scheduler_config.json", **change)
    refused(folder, word)


def test_a_scheduler_without_betas(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "ScoreSdeVeScheduler"}))
    refused(folder, "ScoreSdeVeScheduler")
    IPNDMScheduler().save_pretrained(folder / "scheduler")
    refused(folder, "IPNDMScheduler", "no betas")


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["a"]},
        {"class_names": None, "null_label": 3},
        {"null_label": 7},
        {"null_label": -1},
        {"class_names": "ab"},
        {"provenance": 3},
    ],
)
def test_labels_that_do_not_fit_the_network(folder, change):
    edit_json(folder / "ddpm.json", **change)
    refused(folder, "ddpm.json")


def test_a_student_has_no_more_steps_than_timesteps(folder):
    edit_json(folder / "ddpm.json", student={"steps": 1000})
    assert load_folder(folder).student.steps == 1000
    edit_json(folder / "ddpm.json", student={"steps": 1001})
    refused(folder, "a student of 1001 steps", "1000")


def test_missing_pieces(folder, tmp_path):
    refused(tmp_path / "nowhere", "not a folder")
    refused(tmp_path, "neither")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, "scheduler_config.json")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, "no weights")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"a": "\\ud800"'])
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "ddpm.json"])
def test_broken_json(folder, name, text):
    (folder / name).write_text(text)
    refused(folder)


def test_weights_that_do_not_fit(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"conv_in.weight": torch.zeros(4, 3, 3, 3)}, file)
    refused(folder, "conv_in.weight", "(4, 3, 3, 3)", "(8, 3, 3, 3)")
    save_file(tensors | {"extra": torch.zeros(1)}, file)
    refused(folder, "extra")
    old = {"mid_block.attentions.0.query.weight": tensors["mid_block.attentions.0.to_q.weight"].clone()}
    save_file(tensors | old, file)
    refused(folder, "both")
    file.write_bytes(file.read_bytes()[:-1000])
    refused(folder, "safetensors file")


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    for name in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "ddpm.json"):
        outside = tmp_path / "outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        refused(folder, "link", name)
        (folder / name).unlink()
        outside.rename(folder / name)
    unet = (folder / "unet").rename(tmp_path / "unet")
    (folder / "unet").symlink_to(unet)
    refused(folder, "link")


def test_a_link_within_the_folder_is_fine(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "blob")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").symlink_to("../blob")
    load_folder(folder)


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    load_folder(tmp_path / "latest")


def test_model_index_cannot_lead_elsewhere(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    edit_json(folder / "model_index.json", unet=["../other", "os.system"], scheduler=["/etc", "passwd"])
    load_folder(folder)


def test_an_index_of_shards_cannot_lead_elsewhere(folder, tmp_path):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    names = list(load_file(weights))
    weights.rename(tmp_path / "diffusion_pytorch_model-00001-of-00001.safetensors")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for target in (
        "../../diffusion_pytorch_model-00001-of-00001.safetensors",
        str(tmp_path / "diffusion_pytorch_model-00001-of-00001.safetensors"),
        "diffusion_pytorch_model-00001-of-00001.safetensors",
    ):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))
        refused(folder, "index")
    for content in ({}, {"weight_map": []}, {"weight_map": {}}):
        index.write_text(json.dumps(content))
        refused(folder, "index")


def test_the_hubs_cache_is_links_into_blobs(folder, tmp_path):
    repository = tmp_path / "models--user--name"
    snapshot = repository / "snapshots" / "0123abc"
    shutil.copytree(folder, snapshot)
    (repository / "blobs").mkdir()
    for number, file in enumerate(file for file in snapshot.rglob("*") if file.is_file()):
        blob = repository / "blobs" / f"{number:040x}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    load_folder(snapshot)
    secret = tmp_path / "secret"
    (snapshot / "ddpm.json").resolve().rename(secret)
    (snapshot / "ddpm.json").unlink()
    (snapshot / "ddpm.json").symlink_to(secret)
    refused(snapshot, "link")


def test_a_network_alone_says_what_is_missing(tmp_path):
    random_unet2d(**SMALL).save_pretrained(tmp_path / "unet")
    refused(tmp_path / "unet", "scheduler_config.json")
    DDPMScheduler().save_pretrained(tmp_path / "unet")
    theirs = UNet2DModel.from_pretrained(tmp_path / "unet")
    assert relative_difference(load_folder(tmp_path / "unet").network, theirs) < 1e-5


def test_json_of_more_than_16_mib_is_not_read(tmp_path):
    file = tmp_path / "config.json"
    with file.open("wb") as handle:
        handle.write(b"{}" + b" " * (2**24 - 2))
    assert read_json(file) == {}
    with file.open("ab") as handle:
        handle.write(b" ")
    with pytest.raises(UserError, match="larger than 16 MiB"):
        read_json(file)
