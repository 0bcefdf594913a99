"""`ddpm convert` and `ddpm push` as commands."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm.cli import run
from ddpm.interop import hub

UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


@pytest.fixture
def pickled(tmp_path):
    """A folder of Diffusers' with pickled weights."""
    folder = tmp_path / "pickled"
    DDPMPipeline(UNet2DModel(**UNET), DDPMScheduler(50)).save_pretrained(folder, safe_serialization=False)
    return folder


def test_convert_then_sample(pickled, tmp_path, capsys):
    assert run(["sample", str(pickled), "--out", str(tmp_path / "x.png")]) == 2
    assert "ddpm convert" in capsys.readouterr().err
    assert run(["convert", str(pickled), str(tmp_path / "new")]) == 0
    assert "8×8" in capsys.readouterr().out
    DDPMPipeline.from_pretrained(tmp_path / "new")
    assert run(["sample", str(tmp_path / "new"), "--num", "2", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0


def test_convert_reports_a_wrong_argument_in_one_line(pickled, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "taken").mkdir()
    for arguments, word in (
        ([str(pickled), str(tmp_path / "taken")], "exists"),
        ([str(tmp_path / "a.pt"), str(tmp_path / "new")], "unknown kind"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "new")], "no model"),
        ([str(pickled), str(tmp_path / "new"), "--to", "keras"], "--to"),
    ):
        assert run(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("ddpm: error: ")
        assert error.count("\n") == 1
        assert word in error


def test_sample_refuses_a_file_of_weights(tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    assert run(["sample", str(tmp_path / "a.pt"), "--out", str(tmp_path / "x.png")]) == 2
    assert "ddpm convert" in capsys.readouterr().err


def test_push_uploads_the_model_folder_with_an_image_of_samples(pickled, tmp_path, monkeypatch, capsys):
    run(["convert", str(pickled), str(tmp_path / "new")])
    (tmp_path / "new" / "secret.txt").write_text("not part of a model")
    sent = {}

    def upload(folder, name, *, private):
        sent.update({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
        return f"https://hub/{name}"

    card = tmp_path / "new" / "README.md"
    card.write_text(card.read_text().replace("## Limits\n", "## Limits\n\nMy own words.\n"))
    monkeypatch.setattr(hub, "upload", upload)
    monkeypatch.setattr(hub, "check_login", lambda: None)
    assert run(["push", str(tmp_path / "new"), "user/name", "--num", "2"]) == 0
    assert "https://hub/user/name" in capsys.readouterr().out
    assert {"model_index.json", "README.md", "samples.png", "ddpm.json", "unet/config.json"} <= sent.keys()
    assert "secret.txt" not in sent
    assert b'ddpm.load("user/name")' in sent["README.md"]
    assert b"My own words." in sent["README.md"]
    assert run(["push", str(tmp_path / "new"), "no name"]) == 2
