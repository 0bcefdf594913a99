"""Measure the quantities that decide how training scales.

    python -m experiments.speed.scale

Times training in several processes, the all-reduce between two processes, checkpoints by size, and the decoding of
photographs. Takes under three minutes on two cores that do nothing else. Writes scale.json.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from ddpm.data import open_dataset
from ddpm.networks.unet import UNet
from ddpm.training import load_config
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.optimizer import EMA, Optimizer
from experiments.lib import about, add_folders, command_line, launch, parameter_count, save_result

PRESETS = ("mnist", "cifar10", "lsun_bedroom256")
LAUNCHES = ((1, 1), (1, 2), (2, 1))  # (processes, threads per process)
SIDE, BATCH, PHOTOGRAPHS = 256, 64, 1500  # size, batch and number of the decoded photographs
STEPS = 24  # training steps


def training(processes: int, threads: int, steps: int, folder: Path) -> dict[str, Any]:
    """Images per second of training the preset `digits`, over the second half of its steps."""
    run = folder / f"run-{processes}-{threads}"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words += ["-m", "--", "ddpm", "train", "digits", "--out", str(run), "--overwrite"]
    settings = {"steps": steps, "log_every": steps // 2, "preview_every": 0, "checkpoint_every": steps, "loggers": "[]"}
    words += [word for name, value in settings.items() for word in (f"--training.{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"processes": processes, "threads": threads, "images_per_second": last["images_per_second"]}


def network_of(preset: str) -> UNet:
    """Untrained network of a preset, without classes."""
    config = load_config(preset)
    channels = config.data.channels
    return UNet(config.network, config.data.size, channels, channels, None)


def all_reduce(rank: int, parameters: int, rounds: int, meeting: str, out: str) -> None:
    """Run one of two processes that sum float32 gradients; rank 0 writes the seconds per sum to `out`."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    gradients = torch.ones(parameters)
    dist.all_reduce(gradients)
    began = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(gradients)
    if rank == 0:
        Path(out).write_text(str((time.perf_counter() - began) / rounds))
    dist.destroy_process_group()


def reduction(preset: str, folder: Path, rounds: int = 5) -> dict[str, Any]:
    """Seconds to all-reduce a preset's gradients between two processes of this machine."""
    parameters, out = parameter_count(network_of(preset)), folder / f"{preset}.seconds"
    mp.spawn(all_reduce, (parameters, rounds, str(folder / f"{preset}.meeting"), str(out)), nprocs=2)
    return {"preset": preset, "parameters": parameters, "bytes": 4 * parameters, "seconds": float(out.read_text())}


def checkpoint(preset: str, folder: Path) -> dict[str, Any]:
    """Seconds to write a preset's checkpoint to disk and to read it back, including checksums."""
    network = network_of(preset)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = Optimizer(network, 1.0, False)
    optimizer.step(0.0, torch.zeros(()))
    parts = {"network": network.state_dict(), "ema": EMA(network, 0.999, True).state_dict()}
    parts["optimizer"] = optimizer.state_dict()
    checkpoints = Checkpoints(folder / preset, keep=1)
    began = time.perf_counter()
    path = checkpoints.save(1, parts, {})
    written = time.perf_counter()
    checkpoints.newest()
    return {
        "preset": preset,
        "parameters": parameter_count(network),
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "write_seconds": written - began,
        "read_seconds": time.perf_counter() - written,
    }


def write_photographs(folder: Path, count: int) -> int:
    """Write synthetic photographs, smooth with some grain, as JPEG files and as one tar shard; return their bytes."""
    generator = torch.Generator().manual_seed(0)
    (folder / "photographs").mkdir()
    size = 0
    with tarfile.open(folder / "photographs.tar", "w") as shard:
        for number in range(count):
            coarse = torch.rand(1, 3, 24, 24, generator=generator)
            image = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")[0]
            image += 0.02 * torch.randn(image.shape, generator=generator)
            pixels = image.mul(255).clamp(0, 255).byte().permute(1, 2, 0).numpy()
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
            member = tarfile.TarInfo(f"{number:05}.jpg")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
            (folder / "photographs" / member.name).write_bytes(data)
            size += len(data)
    return size


def decoding(title: str, source: Path, count: int, **options: Any) -> dict[str, Any]:
    """Images per second from a SOURCE to uint8 at 64×64, including the time to open it."""
    began = time.perf_counter()
    dataset = open_dataset(str(source), image_size=64, **options)
    for first in range(0, count, BATCH):
        dataset.draw(0, range(first, min(first + BATCH, count)))
    return {"source": title, "images": count, "images_per_second": count / (time.perf_counter() - began)}


def measure(steps: int, presets: tuple[str, ...], photographs: int) -> dict[str, Any]:
    """Measure everything, one after the other."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "training": [training(*launch, steps, folder) for launch in LAUNCHES],
            "all_reduce": [reduction(preset, folder) for preset in presets],
            "checkpoints": [checkpoint(preset, folder) for preset in presets],
        }
        size = write_photographs(folder, photographs)
        result["decoding"] = {
            "side": SIDE,
            "kilobytes": size / photographs / 1e3,
            "rows": [
                decoding("a folder of JPEG files", folder / "photographs", photographs),
                decoding("a tar shard, indexed", folder / "photographs.tar", photographs),
                decoding("a tar shard, streamed", folder / "photographs.tar", photographs, streaming=True),
            ],
        }
    return {**result, "seconds": round(time.monotonic() - began)}


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__)
    add_folders(parser)
    options = parser.parse_args()
    print(save_result("scale", {**about(), **measure(STEPS, PRESETS, PHOTOGRAPHS)}, options.out))


if __name__ == "__main__":
    launch(main)
