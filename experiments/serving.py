"""What many requests at once do to the page's server: `python -m experiments.serving`.

Starts `ddpm app digits` in a process of its own, asks it for 16 sets of images at once, round after round, compares
every answer with what `Model.sample` draws, and reads the server's resident memory. Needs the extra `app`. Writes
experiments/results/serving.json.
"""

import socket
import subprocess
import sys
import threading
import time
from types import TracebackType

import numpy as np
import psutil
from gradio_client import Client

from ddpm.common.pixels import to_uint8
from ddpm.model import Model, load
from experiments.record import machine, save_result

REQUESTS, IMAGES, STEPS, ROUNDS = 16, 4, 10, 6
REST = 3  # seconds after the last answer, until the memory is read
PATIENCE = 600


class Watched:
    """A process whose resident memory is read ten times a second while the block runs; figures in MiB."""

    def __init__(self, pid: int):
        self._process, self._done = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.peak = self.now()

    def now(self) -> float:
        return self._process.memory_info().rss / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()


def main() -> None:
    port = free_port()
    command = [sys.executable, "-m", "ddpm", "app", "digits", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()  # "the page is at …"
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        model = load("digits")
        ask(client, range(1))  # what is kept once for all is kept from here on
        rounds = [one_round(client, model, server.pid, number) for number in range(ROUNDS)]
    finally:
        server.terminate()
        server.wait()
    settings = {"requests": REQUESTS, "images": IMAGES, "steps": STEPS}
    result = {"command": "python -m experiments.serving", "machine": machine(), **settings, "rounds": rounds}
    print(save_result("serving", result))


def one_round(client: Client, model: Model, pid: int, number: int) -> dict[str, float]:
    """16 requests at once, each of another class and seed; memory in MiB."""
    seeds = range(number * REQUESTS, (number + 1) * REQUESTS)
    with Watched(pid) as memory:
        answers = ask(client, seeds)
        time.sleep(REST)
        after = memory.now()
    right = sum(np.array_equal(answer, drawn(model, seed)) for seed, answer in zip(seeds, answers, strict=True))
    found = {"before": memory.before, "peak": memory.peak, "after": after}
    print(f"{right} of {REQUESTS} right", found)
    return {"answered": len(answers), "right": right, **{name: round(value) for name, value in found.items()}}


def ask(client: Client, seeds: range) -> list[np.ndarray]:
    """The images of all seeds, uint8 (N, H, W, C) each, asked for at once."""
    jobs = [
        client.submit(label=str(seed % 10), steps=STEPS, seed=seed, number=IMAGES, guidance=1, api_name="/generate")
        for seed in seeds
    ]
    return [np.load(job.result(PATIENCE)[4])["arr_0"] for job in jobs]


def drawn(model: Model, seed: int) -> np.ndarray:
    """What request `seed` should be answered."""
    images = model.sample(IMAGES, labels=seed % 10, steps=STEPS, seed=seed, batch_size=IMAGES)
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
