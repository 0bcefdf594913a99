"""Layouts of neighbouring tools: variants and shards, training checkpoints, the Hub's cache, runs."""

import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.training_utils import EMAModel
from interop_cases import SMALL, diffusers_folder, random_unet2d, relative_difference, small_network
from interop_cases import save as save_model
from safetensors.torch import save_file

import ddpm
from ddpm.common.errors import UserError
from ddpm.common.files import is_model, is_run
from ddpm.evaluation.opening import open_candidate
from ddpm.interop.convert import convert
from ddpm.interop.diffusers import load_folder

LASTING = {  # what is true of every step of a run
    "ddpm": "0.2.0",
    "fine-tuned from": "a",
    "distilled from": "b",
    "guidance": 1.5,
    "config": {"training": {"steps": 20}},
    "data": {"images": 3},
    "engine": "cpu",
    "limits": "few images",
}


def pipeline(network):
    return DDPMPipeline(network, DDPMScheduler(num_train_timesteps=50))


@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema", "anything"])
@pytest.mark.parametrize("shard_size", ["10KB", "1GB"])
def test_any_variant_opens_whole_or_in_shards(tmp_path, variant, shard_size):
    theirs = random_unet2d(**SMALL)
    pipeline(theirs).save_pretrained(tmp_path / "m", variant=variant, max_shard_size=shard_size)
    assert variant in str(sorted((tmp_path / "m" / "unet").iterdir()))
    assert relative_difference(load_folder(tmp_path / "m").network, theirs) < 1e-5


@pytest.mark.parametrize("variant", ["ema", "fp16"])
def test_the_weights_without_a_variant_come_first(tmp_path, variant):
    plain, other = random_unet2d(**SMALL), random_unet2d(**SMALL)
    with torch.no_grad():
        other.conv_out.bias.add_(1)
    pipeline(plain).save_pretrained(tmp_path / "m", max_shard_size="10KB")
    pipeline(other).save_pretrained(tmp_path / "m", variant=variant)
    assert relative_difference(load_folder(tmp_path / "m").network, plain) < 1e-5


@pytest.mark.parametrize(("name", "others"), [("ema", ["a_non_ema", "non_ema"]), ("zeta", ["non_ema"])])
def test_averaged_weights_come_before_those_that_are_not(tmp_path, name, others):
    averaged, last = random_unet2d(**SMALL), random_unet2d(**SMALL)
    with torch.no_grad():
        last.conv_out.bias.add_(1)
    for other in others:
        pipeline(last).save_pretrained(tmp_path / "m", variant=other)
    pipeline(averaged).save_pretrained(tmp_path / "m", variant=name)
    assert relative_difference(load_folder(tmp_path / "m").network, averaged) < 1e-5


def test_pickled_shards_are_named_by_load_and_read_by_convert(tmp_path):
    theirs = random_unet2d(**SMALL)
    pipeline(theirs).save_pretrained(tmp_path / "m", safe_serialization=False, max_shard_size="10KB")
    assert len(list((tmp_path / "m" / "unet").glob("*.bin"))) > 1
    with pytest.raises(UserError, match="ddpm convert"):
        load_folder(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, theirs) < 1e-5


@pytest.fixture
def training(tmp_path):
    """What a Diffusers training script leaves: the folder, its last weights and its averaged ones."""
    last, averaged = random_unet2d(**SMALL), random_unet2d(**SMALL)
    with torch.no_grad():
        averaged.conv_out.bias.add_(1)
    last.save_pretrained(tmp_path / "out" / "checkpoint-500" / "unet")
    average = EMAModel(averaged.parameters(), model_cls=type(averaged), model_config=averaged.config)
    average.save_pretrained(tmp_path / "out" / "checkpoint-500" / "unet_ema")
    DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "out" / "scheduler")
    return tmp_path / "out", last, averaged


def test_a_training_checkpoint_opens_with_its_averaged_weights(training, capsys):
    out, _, averaged = training
    for folder in ("checkpoint-500", "checkpoint-500/unet_ema"):
        parts = load_folder(out / folder)
        assert relative_difference(parts.network, averaged) < 1e-5
        assert parts.diffusion.schedule.timesteps == 50
    load_folder(out / "checkpoint-500")
    assert "averaged weights (unet_ema)" in capsys.readouterr().err


def test_a_network_named_in_a_training_checkpoint_is_the_one_that_opens(training, tmp_path):
    out, last, averaged = training
    assert relative_difference(load_folder(out / "checkpoint-500" / "unet").network, last) < 1e-5
    convert(out / "checkpoint-500" / "unet_ema", tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, averaged) < 1e-5


def test_a_training_folder_says_what_is_missing(training):
    out, _, _ = training
    with pytest.raises(UserError, match="out/checkpoint-500"):
        load_folder(out)
    shutil.rmtree(out / "scheduler")
    with pytest.raises(UserError, match=r"scheduler/scheduler_config\.json.*save_pretrained\('.*/out/scheduler'\)"):
        load_folder(out / "checkpoint-500")


def test_the_hubs_cache_folder_leads_to_its_main_revision(model, tmp_path):
    repository = tmp_path / "models--me--tiny"
    model.save(repository / "snapshots" / "abc")
    assert ddpm.load(repository, device="cpu").weights_hash == model.weights_hash
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    with torch.no_grad():
        model.network.conv_out.bias.add_(1)
    model.save(repository / "snapshots" / "aaa")
    assert ddpm.load(repository, device="cpu").weights_hash != model.weights_hash
    (repository / "refs" / "main").write_text("../../elsewhere")
    for folder in (repository, repository / "snapshots"):
        with pytest.raises(UserError, match=r"models--me--tiny has no revision main: .* snapshots .aaa, abc"):
            ddpm.load(folder)
    with pytest.raises(UserError, match=f"cache of the Hub: give one of its models, e.g. {repository}"):
        ddpm.load(tmp_path)


@pytest.fixture
def run(model, tmp_path):
    """A run directory with a model, and a checkpoint whose averaged weights are others."""
    model.provenance = {"steps": 20, "metrics": {"fid": 1.0}, **LASTING}
    model.save(tmp_path / "run" / "model")
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    weights["conv_out.bias"] += 1
    checkpoint = tmp_path / "run" / "checkpoints" / "000010"
    checkpoint.mkdir(parents=True)
    save_file({**weights, "ema_updates": torch.tensor(10)}, checkpoint / "ema.safetensors")
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "run" / name).touch()
    return tmp_path / "run"


def test_a_checkpoint_of_a_run_opens_with_its_averaged_weights(run, model, tmp_path):
    expected = model.network.conv_out.bias + 1
    for relative in ("checkpoints/000010", "checkpoints/000010/"):
        opened = ddpm.load(f"{run}/{relative}", device="cpu")
        assert torch.equal(opened.network.conv_out.bias, expected)
        assert opened.provenance == {"steps": 10, **LASTING}
    convert(run / "checkpoints" / "000010", tmp_path / "new")
    assert torch.equal(ddpm.load(tmp_path / "new", device="cpu").network.conv_out.bias, expected)


@pytest.mark.parametrize("name", ["", "config.yaml", "metrics.jsonl", "model", "model/model_index.json"])
def test_a_run_and_its_files_lead_to_its_model(run, model, name):
    assert ddpm.load(run / name, device="cpu").weights_hash == model.weights_hash
    assert open_candidate(str(run / name)).weights_hash == model.weights_hash


def test_a_run_without_a_model_is_advised_truthfully(run):
    with pytest.raises(UserError, match="checkpoints/000010"):
        ddpm.load(run / "checkpoints")
    shutil.rmtree(run / "model")
    for name in ("", "checkpoints/000010"):
        with pytest.raises(UserError, match=f"ddpm train --resume {run}"):
            ddpm.load(run / name)


def test_a_folder_of_images_with_a_class_called_model_is_no_model(tmp_path):
    for name in ("model", "unet"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        ddpm.save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "pictures" / name / "0.png", gap=0)
    (tmp_path / "pictures" / "config.yaml").touch()
    assert len(open_candidate(str(tmp_path / "pictures"))) == 2
    assert not is_model(tmp_path / "pictures")
    assert not is_run(tmp_path / "pictures")


def test_a_class_with_a_folder_called_checkpoints_is_no_run(tmp_path):
    for name in ("chess/checkpoints", "chess/boards", "go"):
        (tmp_path / name).mkdir(parents=True)
        ddpm.save_grid(torch.zeros(1, 1, 8, 8), tmp_path / name / "0.png", gap=0)
    dataset = ddpm.open_dataset(str(tmp_path), image_size=8, channels=1, labels=True)
    assert (len(dataset), dataset.class_names, dataset.report.skipped) == (3, ["chess", "go"], [])
    assert not is_run(tmp_path / "chess")
    (tmp_path / "chess" / "metrics.jsonl").touch()  # the first file that a run writes
    assert is_run(tmp_path / "chess")
    assert len(ddpm.open_dataset(str(tmp_path), image_size=8, channels=1)) == 1


def test_model_folders_of_every_age_are_models(tmp_path):
    save_model(tmp_path / "ours", small_network())
    diffusers_folder(tmp_path / "theirs", random_unet2d(**SMALL))
    for folder in ("ours", "theirs", "theirs/unet"):
        assert is_model(tmp_path / folder)
    assert not is_model(tmp_path)


def test_the_last_checkpoint_is_the_one_of_most_steps(tmp_path):
    for number in ("500", "1000", "90"):
        (tmp_path / f"checkpoint-{number}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.raises(UserError, match=f"give {tmp_path}/checkpoint-1000$"):
        load_folder(tmp_path)


def test_whole_weights_come_before_shards_of_the_same_name(tmp_path):
    whole, parts = random_unet2d(**SMALL), random_unet2d(**SMALL)
    with torch.no_grad():
        parts.conv_out.bias.add_(1)
    pipeline(whole).save_pretrained(tmp_path / "whole")
    pipeline(parts).save_pretrained(tmp_path / "m", max_shard_size="10KB")
    name = "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(tmp_path / "whole" / name, tmp_path / "m" / name)
    assert relative_difference(load_folder(tmp_path / "m").network, whole) < 1e-5


def test_a_missing_shard_is_told_from_weights_that_do_not_fit(tmp_path):
    pipeline(random_unet2d(**SMALL)).save_pretrained(tmp_path / "m", max_shard_size="10KB")
    min((tmp_path / "m" / "unet").glob("*-of-*")).unlink()
    with pytest.raises(UserError, match="index names files that are not there"):
        load_folder(tmp_path / "m")


def test_pickled_weights_are_left_alone_beside_others(tmp_path):
    safe, pickled = random_unet2d(**SMALL), random_unet2d(**SMALL)
    with torch.no_grad():
        pickled.conv_out.bias.add_(1)
    pipeline(pickled).save_pretrained(tmp_path / "m", safe_serialization=False)
    pipeline(safe).save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "unet" / "diffusion_pytorch_model.bin").is_file()
    convert(tmp_path / "m", tmp_path / "new")
    assert relative_difference(load_folder(tmp_path / "new").network, safe) < 1e-5
