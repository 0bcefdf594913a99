"""`ddpm push` against a stand-in of the Hub that is reached by HTTP alone, and what comes back from it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import TOKEN, Hub, hub
from huggingface_hub import ModelCard
from interop_cases import small_network
from PIL import Image

from ddpm.common.names import VERSION
from ddpm.diffusion.config import DiffusionConfig
from ddpm.interop.card import add_metrics
from ddpm.interop.diffusers import save_folder

NAME = "user/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with classes, and with a metric in its card."""
    folder = tmp_path_factory.mktemp("push") / "model"
    extra = {"class_names": ["a", "b"], "null_label": 2, "provenance": {"config": {"data": {"source": "mnist"}}}}
    network, diffusion = small_network(num_classes=3), DiffusionConfig().build()
    save_folder(folder, network, diffusion, image_shape=(3, 8, 8), extra=extra)
    add_metrics(folder, {"FID: inception, n 10,000": 12.25, "note": "on the training set"})
    return folder


def ddpm(server: Hub, home: Path, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, whose Hub is the stand-in."""
    settings = {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",  # the Hub's other protocol, which the stand-in does not speak
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    code = "import sys; from ddpm.cli import run; sys.exit(run(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ | settings
    )


@pytest.fixture(scope="module")
def pushed(folder, tmp_path_factory):
    """The Hub after `ddpm push --space`, twice: the second time everything exists."""
    home = tmp_path_factory.mktemp("home")
    with hub() as server:
        for num in ("4", "0"):
            done = ddpm(server, home, "push", str(folder), NAME, "--num", num, "--space", "--private")
            assert done.returncode == 0, done.stderr
        yield server, home, done.stdout


def test_the_model_and_its_space_are_created_and_their_addresses_printed(pushed):
    server, _, printed = pushed
    model, space = server.repositories[("model", NAME)], server.repositories[("space", NAME)]
    assert space["sdk"] == "gradio"
    for asked in (model, space):
        assert asked.get("private") is True or asked.get("visibility") == "private"
    assert printed.splitlines()[:2] == [f"{server.address}/{NAME}", f"{server.address}/spaces/{NAME}"]
    assert "HF_TOKEN" in printed.splitlines()[2]


def test_what_was_pushed_is_downloaded_and_samples_the_same(pushed, folder, tmp_path):
    server, home, _ = pushed
    pictures = []
    for name in (NAME, str(folder)):
        out = tmp_path / f"{len(pictures)}.png"
        done = ddpm(server, home, "sample", name, "--num", "2", "--steps", "2", "--out", str(out), token="")
        assert done.returncode == 0, done.stderr
        pictures.append(np.asarray(Image.open(out)))
    assert np.array_equal(*pictures)


def test_the_hub_reads_the_metric_from_the_card(pushed, folder):
    server, _, _ = pushed
    text = server.files[("model", NAME)]["README.md"].decode()
    card = ModelCard(text)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("fid", 12.25, "mnist")
    assert result.task_type == card.data.pipeline_tag == "unconditional-image-generation"
    assert text in server.cards  # the Hub was asked whether it can read this
    assert f'ddpm.load("{NAME}")' in text
    assert "samples.png" in server.files[("model", NAME)]


def test_the_space_runs_the_page_of_the_model_with_this_version(pushed, tmp_path):
    server, _, _ = pushed
    files = server.files[("space", NAME)]
    assert set(files) == {"README.md", "app.py", "requirements.txt"}
    assert files["requirements.txt"].decode() == f"ddpm-kit[app]=={VERSION}\n"
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (front["sdk"], front["app_file"], front["models"]) == ("gradio", "app.py", [NAME])
    assert str(front["python_version"]) >= "3.11"
    script = "import ddpm.cli\nddpm.cli.run = lambda words: print(*words)\nexec(open('app.py').read())"
    (tmp_path / "app.py").write_bytes(files["app.py"])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=absolute())
    assert done.stdout == f"app {NAME} --host 0.0.0.0 --port 7860\n"


def absolute() -> dict[str, str]:
    """This environment with an absolute PYTHONPATH, for a command in another folder."""
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_a_wrong_token_is_one_line_before_any_work(pushed, folder):
    server, home, _ = pushed
    before = len(server.commits)
    done = ddpm(server, home, "push", str(folder), "user/other", token="hf_wrong")
    assert done.returncode == 2
    assert done.stderr.startswith("ddpm: error: your account: the Hub does not know who you are: `hf auth login`")
    assert done.stderr.count("\n") == 1
    assert len(server.commits) == before
