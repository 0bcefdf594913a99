"""A page served once for all its tests, and a browser to look at it with."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from ddpm.app.uploads import read_fitted
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.interop.diffusers import Student
from ddpm.model import Model, load
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet


def page_model(classes: int | None = 3, timesteps: int = 1000, null: bool = True) -> Model:
    """An untrained model of 16×16 grey images; a run of all its 1,000 steps takes long enough to be cancelled."""
    config = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[], groups=4, mid_attention=False)
    network = UNet(config, (16, 16), 1, 1, None if classes is None else classes + 1)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # a zero last layer would hide the class and everything else
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    process = GaussianDiffusion(NoiseSchedule(make_betas("linear", timesteps)), "epsilon", "fixed_small")
    names = None if classes is None else [f"class {index}" for index in range(classes)]
    none = classes if null else None
    return Model(network, process, image_shape=(1, 16, 16), class_names=names, null_label=none, provenance={})


@pytest.fixture(scope="session")
def served_model() -> Model:
    return page_model()


@pytest.fixture(scope="session")
def plain_model() -> Model:
    """Without classes, and with few timesteps."""
    return page_model(classes=None, timesteps=40)


@pytest.fixture(scope="session")
def short_model() -> Model:
    """With fewer timesteps than the page's usual steps."""
    return page_model(timesteps=10)


@pytest.fixture(scope="session")
def strict_model() -> Model:
    """Always of some class: trained without dropping any."""
    return page_model(timesteps=40, null=False)


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory) -> Path:
    """A folder with one run directory in it."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", steps=300)
    return folder


def make_run(run: Path, steps: int) -> None:
    """What a training leaves behind, as the page reads it."""
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {source: digits}\n")
    lines = [f'{{"step": {step}, "loss": {1 / step}, "images_per_second": 9.5}}' for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 30')  # the last line is being written
    for step in (100, 200):
        Image.fromarray(np.full((40, 40), step, np.uint8)).save(run / "samples" / f"{step:06d}.png")


@pytest.fixture(scope="session")
def address(served_model, tmp_path_factory) -> Iterator[str]:
    """The page, served in this process at a free port, beside three runs."""
    folder = tmp_path_factory.mktemp("three runs")
    for steps, name in enumerate(("third", "second", "first"), 300):
        make_run(folder / name, steps)
        os.utime(folder / name / "metrics.jsonl", (steps, steps))
    yield from serve(served_model, folder)


@pytest.fixture(scope="session")
def plain_address(plain_model, tmp_path_factory) -> Iterator[str]:
    """The page of a model without classes, beside no run at all."""
    yield from serve(plain_model, tmp_path_factory.mktemp("no runs"))


@pytest.fixture(scope="session")
def strict_address(strict_model, tmp_path_factory) -> Iterator[str]:
    """The page of a model that always needs a class."""
    yield from serve(strict_model, tmp_path_factory.mktemp("no runs"))


@pytest.fixture(scope="session")
def quick_address(tmp_path_factory) -> Iterator[str]:
    """The page of a student of two steps."""
    student = page_model(timesteps=40)
    student.student = Student(steps=2, sampler="ddim")
    yield from serve(student, tmp_path_factory.mktemp("no runs"))


@pytest.fixture(scope="session")
def switching(served_model, plain_model, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A page of two models beside a run that has one, and the folder of all of them."""
    pytest.importorskip("gradio")
    from ddpm.app.models import Models
    from ddpm.app.page import build, launch, look

    folder = tmp_path_factory.mktemp("models")
    served_model.save(folder / "one")
    plain_model.save(folder / "other")
    make_run(folder / "runs" / "trained", steps=20)
    plain_model.save(folder / "runs" / "trained" / "model")

    def page(name: str):
        return build(load(name), name, folder / "runs", models, trains=True)

    models = Models([str(folder / "one"), str(folder / "other")], folder / "runs", page, look())
    first = page(models.given[0])
    yield launch(first, "127.0.0.1", free_port(), block=False, models=models), folder
    first.close()


def serve(model: Model, runs: Path) -> Iterator[str]:
    pytest.importorskip("gradio")
    from ddpm.app.page import build, launch

    page = build(model, "somebody's model", runs)
    yield launch(page, "127.0.0.1", free_port(), block=False)
    page.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def uploads(tmp_path_factory) -> Path:
    """good.png, and files that are not what they seem."""
    folder = tmp_path_factory.mktemp("uploads")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"this is no image")
    with (folder / "heavy.png").open("wb") as heavy:
        heavy.truncate(20 * 2**20 + 1)
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    frames = [Image.new("P", (20, 20), colour) for colour in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(folder / "alpha.png")
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    Image.fromarray(half).save(folder / "mask.png")
    return folder


@pytest.fixture(scope="session")
def picture(uploads) -> torch.Tensor:
    """good.png as the models take it."""
    return read_fitted(str(uploads / "good.png"), (1, 16, 16))


@pytest.fixture
def stub_trainer(tmp_path, monkeypatch) -> Iterator[Path]:
    """A small program in place of `ddpm train`: it writes a run until it is stopped."""
    script = tmp_path / "train"
    script.write_text(
        """#!/bin/sh
        echo "$@"
        while [ "$1" != --out ]; do shift; done
        mkdir -p "$2"
        printf "process $$ on $(hostname)" > "$2/.lock"
        echo "training: {steps: 100}" > "$2/config.yaml"
        echo '{"step": 5, "loss": 1.0, "seconds": 1}' > "$2/metrics.jsonl"
        trap 'rm "$2/.lock"; exit 0' TERM
        while :; do sleep 0.05; done
        """
    )
    script.chmod(0o755)
    monkeypatch.setattr("ddpm.app.training.sys.executable", str(script))
    yield script
    for process in psutil.process_iter(["cmdline"]):
        if str(script) in (process.info["cmdline"] or []):
            process.kill()


@pytest.fixture(scope="module")
def kept(browser, address) -> Iterator:
    from visiting import Visit

    visit = Visit(browser, address)
    yield visit
    visit.page.close()


@pytest.fixture
def visit(kept) -> Iterator:
    """A visit that several tests share, because it takes seconds to begin one."""
    yield kept
    assert kept.wrong == []


@pytest.fixture
def phone(browser, address) -> Iterator:
    from visiting import fresh

    yield from fresh(browser, address, 390, has_touch=True, is_mobile=True)
