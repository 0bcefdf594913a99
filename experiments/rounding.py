"""By how much the same computation differs where sums are rounded in another order.

    python -m experiments.rounding

The bundled model, 16 images of seed 0: one call of the network, and 20 steps. Each way of computing is a process of
its own, compared with one of one thread, batches of 16 and float32. An older processor is imitated by forbidding
AVX-512. Writes experiments/results/rounding.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ddpm.common.pixels import to_uint8
from ddpm.common.randomness import ImageNoise
from ddpm.model import load
from experiments.record import RESULTS, machine, save_result

NUM, T = 16, 500


@dataclass(frozen=True)
class Way:
    """A way of computing the same; `environment`: variables that PyTorch reads when it starts."""

    title: str
    threads: int = 1
    batch: int = NUM
    precision: str = "fp32"
    environment: dict[str, str] = field(default_factory=dict)


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
WAYS = (
    Way("the same again"),
    Way("two threads", threads=2),
    Way("batches of 4", batch=4),
    Way("a processor without AVX-512", environment=AVX2),
    Way("bf16", precision="bf16"),
)


def compute(way: Way, path: Path) -> None:
    """Write the prediction of one call and the images after 20 steps, in this process."""
    torch.set_num_threads(way.threads)
    model = load("digits", device="cpu")
    x_t = ImageNoise.of_seed(0, range(NUM), model.image_shape)()
    labels = torch.arange(NUM) % 10
    parts = range(0, NUM, way.batch)
    denoisers = [model.denoiser(labels[i : i + way.batch], precision=way.precision) for i in parts]
    with torch.no_grad():
        calls = [denoiser(x_t[i : i + way.batch], T).x_0 for denoiser, i in zip(denoisers, parts, strict=True)]
    images = model.sample(NUM, seed=0, batch_size=way.batch, precision=way.precision)
    torch.save({"call": torch.cat(calls).float(), "images": images}, path)


def computed(number: int | None, folder: Path) -> dict[str, torch.Tensor]:
    """What a way of `WAYS` computes in a process of its own; None is the one that all are compared with."""
    path = folder / f"{number}.pt"
    way = Way("") if number is None else WAYS[number]
    words = [sys.executable, "-m", "experiments.rounding", "--way", str(-1 if number is None else number)]
    subprocess.run([*words, "--out", str(path)], env={**os.environ, **way.environment}, check=True)
    return torch.load(path, weights_only=True)


def compare(folder: Path) -> list[dict[str, Any]]:
    """A row a way: the largest differences from the usual one."""
    usual, rows = computed(None, folder), []
    for number, way in enumerate(WAYS):
        found = computed(number, folder)
        shown, levels = to_uint8(found["images"]), to_uint8(usual["images"])
        rows.append(
            {
                "way": way.title,
                "call": float((found["call"] - usual["call"]).abs().max()),
                "images_of_255": 127.5 * float((found["images"] - usual["images"]).abs().max()),
                "pixels_changed": float((shown != levels).double().mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        compute(Way("") if options.way < 0 else WAYS[options.way], options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder))
    about = {"command": "python -m experiments.rounding", "machine": machine(), "torch": torch.__version__}
    print(save_result("rounding", {**about, "rows": rows}, RESULTS))


if __name__ == "__main__":
    main()
