"""Stream a million images and watch the memory: `python tests/campaigns/stream.py [--images 1000000] [--processes 2]`.

Tar shards and parquet files of 10,000 synthetic images each are hard-linked until there are enough, and read for one
epoch by several processes, through the same code as in training. The campaign prints whether every image came once, how
much memory grew between the first tenth and the end, and the speed.
"""

import argparse
import io
import multiprocessing
import os
import resource
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

IN_A_SHARD = 10_000
BATCH = 1000


def picture(number: int) -> bytes:
    """Return a PNG of 8x8 pixels that holds its number in red and green."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number // 256, number % 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(IN_A_SHARD):
            data = picture(number)
            info = tarfile.TarInfo(f"{number:06}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_parquet(path: Path) -> None:
    import datasets

    rows = {"image": [{"bytes": picture(number), "path": None} for number in range(IN_A_SHARD)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def read(folder: str, images: int, rank: int, processes: int, answers) -> None:
    """Read one process's part of an epoch; answer how often each number came, and the memory early and late."""
    from ddpm.data import open_dataset
    from ddpm.diffusion.timestep_samplers import UniformSampler
    from ddpm.training.batches import BatchSource

    dataset = open_dataset(folder, image_size=8, streaming=True)
    positions = range(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    source = BatchSource(dataset, UniformSampler(10), batch_size=BATCH, seed=0, positions=positions)
    batches = source.steps(0)
    counts: Counter[int] = Counter()
    peaks = []
    for _ in range(images // BATCH):
        x_0 = next(batches).x_0
        pixels = ((x_0[:, :2, 0, 0] + 1) * 127.5).round().int()
        counts.update((pixels[:, 0] * 256 + pixels[:, 1]).tolist())
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    answers.put((counts, peaks[len(peaks) // 10], peaks[-1]))
    os._exit(0)  # without waiting for the thread that reads ahead


def campaign(kind: str, images: int, processes: int, folder: Path) -> None:
    write = {"tar": write_tar, "parquet": write_parquet}[kind]
    shards = images // IN_A_SHARD
    write(folder / f"000.{kind}")
    for number in range(1, shards):
        os.link(folder / f"000.{kind}", folder / f"{number:03}.{kind}")
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    began = time.perf_counter()
    workers = [
        context.Process(target=read, args=(str(folder), images, rank, processes, answers)) for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    shares = [answers.get() for _ in workers]
    seconds = time.perf_counter() - began
    met = sum((counts for counts, _, _ in shares), Counter())
    once = met == Counter(dict.fromkeys(range(IN_A_SHARD), shards))
    growth = max(late - early for _, early, late in shares) / 1024
    print(
        f"{kind}: {sum(met.values()):,} images over {processes} processes, each once: {once}; "
        f"memory {max(late for _, _, late in shares) / 1024:.0f} MiB a process, grown by {growth:.1f} MiB since the "
        f"first tenth; {images / seconds:,.0f} images a second",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    for kind in ("tar", "parquet"):
        with tempfile.TemporaryDirectory() as folder:
            campaign(kind, arguments.images, arguments.processes, Path(folder))


if __name__ == "__main__":
    main()
