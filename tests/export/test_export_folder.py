"""A place that cannot be written to is refused before anything is computed."""

import pytest

from ddpm.common.errors import UserError
from ddpm.export import onnx_files, web
from ddpm.model import SamplingOptions


@pytest.mark.parametrize("export", [onnx_files.export_onnx, web.export_web])
def test_a_file_in_place_of_the_folder_is_refused_at_once(model, tmp_path, monkeypatch, export):
    def computed(*_):
        raise AssertionError("the model was converted first")

    monkeypatch.setattr(onnx_files, "onnx_model", computed)
    monkeypatch.setattr(web, "onnx_model", computed)
    monkeypatch.setattr(web, "fetched_runtime", computed)
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="out is a file: give a folder"):
            export(model, tmp_path / "out", SamplingOptions(), overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(("export", "name"), [(onnx_files.export_onnx, "model.json"), (web.export_web, "index.html")])
def test_an_earlier_export_is_kept(model, tmp_path, export, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} exists"):
        export(model, tmp_path, SamplingOptions())
    assert (tmp_path / name).read_text() == "mine"
