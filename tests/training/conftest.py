"""A run small enough to be trained in a test: 8×8 pictures of two classes, a network of some thousand parameters."""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from ddpm.training import Config, load_config

TINY = """
data:     {source: SOURCE, image_size: 8, channels: 1, labels: true, random_flip: true}
diffusion: {timesteps: 20, beta_start: 0.001, beta_end: 0.2}
network:  {channels: 8, channel_mult: [1, 2], blocks: 1, attention: [4], groups: 4, dropout: 0.2}
training: {steps: 8, batch_size: 8, learning_rate: 1.0e-3, warmup: 3, lr_schedule: cosine, ema_decay: 0.9,
           precision: fp32, checkpoint_every: 4, preview_every: 0, log_every: 1, loggers: []}
"""


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory) -> Path:
    """A configuration file, with the data it names beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    draw = np.random.default_rng(0)
    labels = np.arange(30) % 2
    images = draw.integers(0, 100, (30, 8, 8, 1)) + 100 * labels[:, None, None, None]
    np.savez(folder / "data.npz", images.astype(np.uint8), labels)
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("SOURCE", str(folder / "data.npz")))
    return path


@pytest.fixture
def tiny(tiny_yaml):
    """tiny(steps=3, **{"diffusion.timesteps": 5}) -> Config; a name without a section is a field of `training`."""

    def make(**overrides) -> Config:
        return load_config(
            tiny_yaml, {name if "." in name else f"training.{name}": value for name, value in overrides.items()}
        )

    return make


@pytest.fixture
def broken_tar(tmp_path):
    """broken_tar(12, broken=[3]) -> a tar of so many 8×8 pictures 0.png, 1.png, …, some of which are no pictures."""

    def make(count: int, broken: Iterable[int]) -> Path:
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for number in range(count):
                picture = io.BytesIO()
                if number not in broken:
                    Image.new("L", (8, 8), number).save(picture, "png")
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(picture.getvalue())
                tar.addfile(member, io.BytesIO(picture.getvalue()))
        return tmp_path / "photos.tar"

    return make


class RunFiles:
    """What a run left behind, ready to be compared."""

    @staticmethod
    def records(run: Path, *keys: str) -> list[dict]:
        """The lines of metrics.jsonl, or these keys of those that have them."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in keys} for line in lines if all(key in line for key in keys)]

    @staticmethod
    def tensors(run: Path, step: int) -> dict[str, bytes]:
        """Every tensor of a checkpoint as bytes."""
        folder = run / "checkpoints" / f"{step:06d}"
        return {
            f"{file.stem}/{name}": tensor.numpy().tobytes()
            for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    @staticmethod
    def wait_for_step(run: Path, step: int, alive: Callable[[], bool]) -> None:
        """Until the log of a run in other processes has come so far."""
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert alive(), "the run has ended"
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.02)


@pytest.fixture
def files() -> type[RunFiles]:
    return RunFiles
