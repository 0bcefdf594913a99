"""A part of a model or of a run leads to the whole, or says where it is."""

import pytest
from interop_cases import SMALL, random_unet2d

import ddpm
from ddpm.common.errors import UserError
from ddpm.interop.diffusers import load_folder
from ddpm.interop.layouts import model_folder


def test_the_network_of_a_pipeline_opens_with_its_scheduler(model, tmp_path):
    model.save(tmp_path / "m")
    for name in ("m/unet", "m/unet/", "m/model_index.json"):
        opened = ddpm.load(f"{tmp_path}/{name}", device="cpu")
        assert opened.weights_hash == model.weights_hash
        assert opened.diffusion.schedule.betas.tolist() == model.diffusion.schedule.betas.tolist()


def test_a_network_without_a_pipeline_stays_itself(tmp_path):
    random_unet2d(**SMALL).save_pretrained(tmp_path / "unet")
    assert model_folder(tmp_path / "unet") == tmp_path / "unet"


@pytest.mark.parametrize("name", ["samples", "set_aside"])
def test_other_parts_of_a_run_name_the_run(model, tmp_path, name):
    model.save(tmp_path / "run" / "model")
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "run" / name).mkdir()
    with pytest.raises(UserError, match=f"to open the model of its run give {tmp_path}/run$"):
        load_folder(tmp_path / "run" / name)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"nor config\.json$"):
        load_folder(tmp_path / "run" / name)
