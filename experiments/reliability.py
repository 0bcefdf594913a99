"""Measure how far equal computations differ, and how the app's server copes with many requests at once.

    python -m experiments.reliability rounding
    python -m experiments.reliability serving

`rounding` compares ways to compute the same thing that round sums in another order: one call of the bundled model on 16
images, and 20 sampling steps from seed 0. Each way runs in a process of its own and is compared with one thread,
batches of 16 and float32. An older processor is imitated by forbidding AVX-512. Writes rounding.json.
`serving` starts `ddpm app digits` in a process of its own, sends 16 requests at once, round after round, compares every
answer with `Model.sample`, and reads the server's resident memory. Needs the extra `app`. Writes serving.json.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import torch
from gradio_client import Client

from ddpm.common.pixels import to_uint8
from ddpm.common.randomness import ImageNoise
from ddpm.model import Model, load
from experiments.lib import about, add_folders, command_line, launch, save_result

# rounding

NUM, T = 16, 500


@dataclass(frozen=True)
class Way:
    """Way to compute the same thing. `environment`: variables that PyTorch reads when it starts."""

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
USUAL = Way("the usual way")


def compute(way: Way, path: Path) -> None:
    """Write the predicted x_0 of one call, and the images after 20 steps, both float32 (NUM, 1, 28, 28)."""
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


def compute_apart(number: int, folder: Path) -> dict[str, torch.Tensor]:
    """Run `compute` in a process of its own; -1 is the usual way."""
    path = folder / f"{number}.pt"
    words = [sys.executable, "-m", "experiments.reliability", "compute", str(path), "--way", str(number)]
    subprocess.run(words, env={**os.environ, **way_of(number).environment}, check=True)
    return torch.load(path, weights_only=True)


def way_of(number: int) -> Way:
    """Way by its place in `WAYS`; -1 is the usual way."""
    return USUAL if number < 0 else WAYS[number]


def compare_ways(folder: Path) -> list[dict[str, Any]]:
    """Largest differences of each way from the usual one, a row each."""
    usual, rows = compute_apart(-1, folder), []
    for number, way in enumerate(WAYS):
        found = compute_apart(number, folder)
        changed = to_uint8(found["images"]) != to_uint8(usual["images"])
        rows.append(
            {
                "way": way.title,
                "call": float((found["call"] - usual["call"]).abs().max()),
                "images_of_255": 127.5 * float((found["images"] - usual["images"]).abs().max()),
                "pixels_changed": float(changed.double().mean()),
            }
        )
    return rows


def run_rounding(options: argparse.Namespace) -> None:
    """Run the command `rounding`."""
    with tempfile.TemporaryDirectory() as folder:
        rows = compare_ways(Path(folder))
    print(save_result("rounding", {**about(), "torch": torch.__version__, "rows": rows}, options.out))


def run_compute(options: argparse.Namespace) -> None:
    """Run the child process of `compute_apart`."""
    compute(way_of(options.way), options.path)


# serving

REQUESTS, IMAGES, STEPS = 16, 4, 10  # requests at once, images per request, sampling steps
REST = 3  # seconds between the last answer and reading the memory
PATIENCE = 600  # seconds to wait for an answer


class MemoryWatch:
    """Context that reads the resident memory of a process ten times a second; figures in MiB."""

    def __init__(self, pid: int):
        self._process, self._done = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.peak = self.now()

    def now(self) -> float:
        """Resident memory now."""
        return self._process.memory_info().rss / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()


def run_serving(options: argparse.Namespace) -> None:
    """Run the command `serving`."""
    port = free_port()
    words = [sys.executable, "-m", "ddpm", "app", "digits", "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()  # the line with the address
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        model = load("digits")
        request(client, range(1))  # fills the caches that stay
        rounds = [one_round(client, model, server.pid, number) for number in range(options.rounds)]
    finally:
        server.terminate()
        server.wait()
    settings = {"requests": REQUESTS, "images": IMAGES, "steps": STEPS}
    print(save_result("serving", {**about(), **settings, "rounds": rounds}, options.out))


def one_round(client: Client, model: Model, pid: int, number: int) -> dict[str, float]:
    """Send all requests of a round at once, each with another class and seed; memory in MiB."""
    seeds = range(number * REQUESTS, (number + 1) * REQUESTS)
    with MemoryWatch(pid) as memory:
        answers = request(client, seeds)
        time.sleep(REST)
        after = memory.now()
    right = sum(np.array_equal(answer, expected(model, seed)) for seed, answer in zip(seeds, answers, strict=True))
    found = {"before": memory.before, "peak": memory.peak, "after": after}
    print(f"{right} of {REQUESTS} right", found)
    return {"answered": len(answers), "right": right, **{name: round(value) for name, value in found.items()}}


def request(client: Client, seeds: range) -> list[np.ndarray]:
    """Request the images of all seeds at once; return uint8 (IMAGES, H, W, C) for each."""
    jobs = [
        client.submit(label=str(seed % 10), steps=STEPS, seed=seed, number=IMAGES, guidance=1, api_name="/generate")
        for seed in seeds
    ]
    return [np.load(job.result(PATIENCE)[4])["arr_0"] for job in jobs]


def expected(model: Model, seed: int) -> np.ndarray:
    """Right answer to the request with this seed, uint8 (IMAGES, H, W, C)."""
    images = model.sample(IMAGES, labels=seed % 10, steps=STEPS, seed=seed, batch_size=IMAGES)
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Parse the command line and run the chosen measurement."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(required=True)
    rounding = commands.add_parser("rounding", help="differences between ways to compute the same")
    rounding.set_defaults(action=run_rounding)
    serving = commands.add_parser("serving", help="answers and memory of the app's server under load")
    serving.add_argument("--rounds", type=int, default=6, help="rounds of requests (default: 6)")
    serving.set_defaults(action=run_serving)
    for one in (rounding, serving):
        add_folders(one)
    child = commands.add_parser("compute")  # used by `compute_apart`
    child.add_argument("path", type=Path)
    child.add_argument("--way", type=int)
    child.set_defaults(action=run_compute)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    launch(main)
