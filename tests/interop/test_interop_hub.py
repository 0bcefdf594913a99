"""The Hub: names, the cache, and errors in one line; no network is needed."""

import http.server
import os
import shutil
import socketserver
import threading
from functools import partial

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from interop_cases import relative_difference, small_network

from ddpm.common.errors import UserError
from ddpm.diffusion.config import DiffusionConfig
from ddpm.interop import hub
from ddpm.interop.diffusers import load_folder, save_folder


@pytest.mark.parametrize("name", ["google/ddpm-cifar10-32", "a/b", "user_1/x.y"])
def test_ids(name):
    assert hub.looks_like_id(name)


@pytest.mark.parametrize("name", ["digits", "./a/b", "/a/b", "a/b/c", "../b", "a/..", "a/b--c", "a/ b", "", "a/b\n"])
def test_no_ids(name):
    assert not hub.looks_like_id(name)
    with pytest.raises(UserError, match="user/name"):
        hub.check_id(name)


@pytest.fixture(autouse=True)
def sessions():
    """A connection that was opened offline stays offline, so it must not be used by the next test."""
    close = getattr(huggingface_hub.utils, "close_session", None) or huggingface_hub.utils.reset_sessions
    close()
    yield
    close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache with one model, as snapshot_download lays it out."""
    save_folder(tmp_path / "m", small_network(), DiffusionConfig().build(), image_shape=(3, 8, 8), extra={})
    repository = tmp_path / "hub" / "models--user--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tmp_path / "m", snapshot)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(file for file in snapshot.rglob("*") if file.is_file()):
        blob = file.rename(repository / "blobs" / f"{number:040x}")
        file.symlink_to(os.path.relpath(blob, file.parent))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_cached_model_opens_offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = hub.download("user/name")
    assert folder.is_relative_to(cache)
    assert relative_difference(load_folder(folder).network, small_network()) == 0


def test_a_cached_model_opens_when_the_hub_does_not_answer(cache, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.download("user/name").is_relative_to(cache)


@pytest.mark.parametrize(("name", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")])
def test_what_is_not_cached_is_one_line(cache, monkeypatch, name, value):
    monkeypatch.setattr(constants, name, value)
    with pytest.raises(UserError, match="user/other") as caught:
        hub.download("user/other")
    assert "\n" not in str(caught.value)


def test_a_hub_that_hangs_up_is_one_line(monkeypatch):
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        # old versions of huggingface_hub do not tell it from a Hub that cannot be reached
        with pytest.raises(UserError, match=r"user/other.* the Hub (did not answer|cannot be reached)") as caught:
            hub.download("user/other")
        server.shutdown()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "way_out"), [(401, "hf auth login"), (403, "may not do that")])
def test_a_hub_that_refuses_says_what_to_do(monkeypatch, status, way_out):
    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setattr(huggingface_hub, "HfApi", partial(HfApi, f"http://127.0.0.1:{server.server_port}", "hf_x"))
        with pytest.raises(UserError, match=way_out) as caught:
            hub.check_login()
        server.shutdown()
    assert "\n" not in str(caught.value)


def test_a_cached_model_without_safetensors_says_so(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for file in cache.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="ddpm convert user/name"):
        hub.download("user/name")


@pytest.mark.parametrize("pickled", [False, True])
def test_only_the_files_of_a_model_are_asked_for(monkeypatch, tmp_path, pickled):
    """Repositories hold checkpoints, other formats and pictures of many gigabytes."""
    model = ["README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    weights = [f"{folder}diffusion_pytorch_model{end}" for folder in ("", "unet/") for end in (
        ".safetensors", "-00001-of-00002.safetensors", ".safetensors.index.json", ".fp16.safetensors")]  # fmt: skip
    pickles = ["diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.bin"]
    others = [
        "checkpoint-500/unet/diffusion_pytorch_model.safetensors",
        "checkpoint-500/optimizer.bin",
        "samples/1.png",
    ]
    others += ["vae/diffusion_pytorch_model.safetensors", "optimizer.bin", "model.onnx", "flax_model.msgpack"]
    asked = set()

    def snapshot_download(name, allow_patterns=None):
        files = [*model, *weights, *pickles, *others]
        asked.update(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns))
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="has no safetensors weights"):  # the folder is empty
        hub.download("user/name", pickled=pickled)
    assert asked == {*model, *weights, *(pickles if pickled else [])}
