"""Disturb training runs and compare what they end with: `python tests/campaigns/torture.py [--kills 100]`.

One run is never disturbed. Others of the same configuration are killed (`kill -9`) at random moments and during
checkpoint writes, and terminated. They get a full or read-only disk, a second run on their directory and damaged files.
Each time they are resumed. After each disturbance the newest good checkpoint must equal, bit for bit, that of the
undisturbed run at the same step. At the end of a run its checkpoint, model, previews and log must equal the undisturbed
run's. Disks are filled and made read-only in a small tmpfs, if mounting is allowed.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CONFIG = """
data:     {source: DATA, image_size: 8, channels: 1, labels: true, random_flip: true}
diffusion: {timesteps: 4, beta_start: 0.01, beta_end: 0.7, timestep_sampler: loss_aware}
network:  {channels: 8, channel_mult: [1, 2], blocks: 1, attention: [4], groups: 4, dropout: 0.2}
training: {steps: STEPS, batch_size: 8, learning_rate: 1.0e-3, warmup: 3, lr_schedule: cosine, ema_decay: 0.9,
           checkpoint_every: 2, keep_checkpoints: 2, preview_every: 12, preview_images: 4, preview_steps: 2,
           log_every: 1, loggers: []}
"""
LOGGED = ("step", "images", "loss", "gradient_norm", "learning_rate", "weight_norm", "ema_drift", "channel_0_drift")
INSIDE = "killed inside a checkpoint write"
STEPS = 24
DAMAGES = ("truncated", "bit flipped", "missing")
TIMEOUT = 600  # seconds, for any process


def train_in_child(config: str, out: str, keep: int, log: str) -> None:
    """Start or resume the run in `out`, as `ddpm train` would, in a subprocess; its output goes to `log`."""
    import torch

    from ddpm.cli import complain
    from ddpm.common.errors import RunStopped, UserError
    from ddpm.training import load_config, train

    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        train(
            load_config(config, {"training.keep_checkpoints": keep}), out, resume=(Path(out) / "config.yaml").exists()
        )
    except UserError as error:
        sys.exit(complain(str(error), 2))
    except RunStopped as error:
        sys.exit(complain(str(error), 1))


class Mismatch(Exception):
    """A disturbed run differs from the undisturbed one."""


class Campaign:
    """A scratch folder with a configuration, an undisturbed run, and the counts of the disturbances."""

    def __init__(self, scratch: Path, seed: int):
        import numpy as np

        self.scratch, self.random = scratch, random.Random(seed)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["ddpm.cli"])
        draw = np.random.default_rng(0)
        labels = np.arange(30) % 2
        images = draw.integers(0, 100, (30, 8, 8, 1)) + 100 * labels[:, None, None, None]
        np.savez(scratch / "data.npz", images.astype(np.uint8), labels)
        self.config = scratch / "config.yaml"
        self.config.write_text(CONFIG.replace("DATA", str(scratch / "data.npz")).replace("STEPS", str(STEPS)))
        self.log = scratch / "said.txt"
        self.counts: Counter[str] = Counter()
        undisturbed = scratch / "undisturbed"
        self.finish(self.start(undisturbed, keep=1000), 0)
        self.expected = {int(path.name): contents(path) for path in (undisturbed / "checkpoints").iterdir()}
        self.expected_end = end_of(undisturbed)
        self.expected_log = log_of(undisturbed)

    def start(self, run: Path, keep: int = 2):
        process = self.context.Process(target=train_in_child, args=(str(self.config), str(run), keep, str(self.log)))
        process.start()
        return process

    def finish(self, process, code: int) -> None:
        """Wait for a process and check its exit code."""
        process.join(TIMEOUT)
        if process.exitcode != code:
            raise Mismatch(f"a process ended with {process.exitcode}, not {code}: {self.log.read_text()[-2000:]}")

    def check(self, run: Path) -> None:
        """Compare the newest good checkpoint, and the log up to it, with the undisturbed run's."""
        from ddpm.training.checkpoint import Checkpoints

        checkpoints = Checkpoints(run / "checkpoints", keep=2)
        if not checkpoints.steps():
            return
        newest = checkpoints.newest(lambda line: None)
        step = int(newest.path.name)
        if contents(newest.path) != self.expected[step]:
            raise Mismatch(f"checkpoint {step} differs")
        logged = [record for record in log_of(run) if record["step"] <= step]
        if logged != [record for record in self.expected_log if record["step"] <= step]:
            raise Mismatch(f"the log up to {step} differs")

    def check_end(self, run: Path) -> None:
        if end_of(run) != self.expected_end or log_of(run) != self.expected_log:
            raise Mismatch("the end of the run differs")
        self.counts["runs that reached their end, bitwise equal"] += 1

    def disturb(self, run: Path, disturbance) -> None:
        """Start or resume a run, disturb it, and compare; remove it if it has reached its end."""
        process = self.start(run)
        happened = disturbance(process, run)
        process.join(TIMEOUT)
        if process.exitcode is None:
            raise Mismatch("a process hangs")
        if happened:
            self.counts[happened] += 1
        if process.exitcode == 0:
            self.check_end(run)
            shutil.rmtree(run)
        elif "Traceback" in (text := self.log.read_text()):
            raise Mismatch(f"a traceback: {text[-2000:]}")
        else:
            self.check(run)

    def somewhere(self, process, run: Path) -> bool:
        """Wait until the run has logged a few steps, and a random moment more; return whether it is still alive."""
        while (
            process.is_alive() and "images/s" not in self.log.read_text()
        ):  # the bar is shown after the log is cut back
            time.sleep(0.002)
        target = min(last_step(run) + self.random.randint(1, 6), STEPS - 1)
        while process.is_alive() and last_step(run) < target:
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.05))
        return process.is_alive()

    def kill(self, process, run: Path) -> str | None:
        if not self.somewhere(process, run):
            return None
        process.kill()
        process.join()
        return "killed at a random moment"

    def kill_while_writing(self, process, run: Path) -> str | None:
        """Kill when a checkpoint is half written or half removed, or shortly after."""
        self.somewhere(process, run)
        while process.is_alive():
            if unfinished(run):
                time.sleep(self.random.uniform(0, 0.004))
                process.kill()
                process.join()
                left = unfinished(run)
                return f"{INSIDE} ({left})" if left else "killed just after a checkpoint write"
            time.sleep(0.0005)
        return None

    def terminate(self, process, run: Path) -> str | None:
        if not self.somewhere(process, run):
            return None
        process.terminate()
        process.join(TIMEOUT)
        return "terminated (SIGTERM)" if process.exitcode == 128 + signal.SIGTERM else None

    def second_run(self, process, run: Path) -> str | None:
        if not self.somewhere(process, run):
            return None
        os.kill(process.pid, signal.SIGSTOP)  # so that the first run does not end before the second has asked
        second = self.start(run)
        second.join(TIMEOUT)
        os.kill(process.pid, signal.SIGCONT)
        if second.exitcode == 0:
            process.join(TIMEOUT)
            if process.exitcode == 0:  # it had released the lock before it was stopped
                return None
        if second.exitcode != 2:
            raise Mismatch(f"a second run ended with {second.exitcode}")
        process.kill()
        process.join()
        return "a second run refused"

    def limit_files(self, process, run: Path) -> str | None:
        """Limit the size of files to a random number from a random moment on, as a quota does."""
        import resource

        if not self.somewhere(process, run):
            return None
        size = int(10 ** self.random.uniform(2, 5))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
        process.join(TIMEOUT)
        return "file size limited (quota)" if process.exitcode == 1 else None

    def fill_disk(self, process, run: Path) -> str | None:
        if not self.somewhere(process, run):
            return None
        filler = run.parent / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
            while True:
                handle.write(bytes(4096))
        process.join(TIMEOUT)
        filler.unlink()
        return "disk full" if process.exitcode == 1 else None

    def damage(self, process, run: Path, damage: str) -> str | None:
        """Kill, then damage a file of the newest checkpoint."""
        self.somewhere(process, run)
        process.kill()
        process.join()
        found = sorted((run / "checkpoints").glob("[0-9]*")) if (run / "checkpoints").exists() else []
        if len(found) < 2:
            return None
        file = self.random.choice(sorted(found[-1].iterdir()))
        if damage == "missing":
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            if damage == "truncated":
                del data[self.random.randrange(len(data)) :]
            else:
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            file.write_bytes(data)
        return f"newest checkpoint {damage}"

    def read_only(self, disk: Path) -> None:
        """Make the disk read-only: the run must end with one line, and resume when the disk is writable again."""
        run = disk / "run"
        self.disturb(run, self.kill)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        process = self.start(run)
        process.join(TIMEOUT)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        if process.exitcode not in (1, 2) or "Traceback" in self.log.read_text():
            raise Mismatch(f"on a read-only disk: {process.exitcode}, {self.log.read_text()[-2000:]}")
        self.counts["disk read-only"] += 1
        self.disturb(run, self.nothing)

    def nothing(self, process, run: Path) -> None:
        """Do not disturb."""


def unfinished(run: Path) -> str | None:
    """Return what is half done in a run: a checkpoint being written or removed, or the model being replaced."""
    names = {"writing": "writing", "removed": "removing", "replaced": "replacing", "model": "replacing the model"}
    with contextlib.suppress(OSError):
        for path in [*(run / "checkpoints").iterdir(), *run.glob(".model*")]:
            word = path.name.strip(".").replace(".", "-").partition("-")[0]
            if path.name.startswith(".") and word in names:
                return names[word]
    return None


def last_step(run: Path) -> int:
    """Return the last step of the log."""
    records = log_of(run) if (run / "metrics.jsonl").exists() else []
    return records[-1]["step"] if records else 0


def contents(folder: Path) -> str:
    """Return a hash of the tensors of a checkpoint, without its JSON, which holds times."""
    return hashed(sorted(folder.glob("*.safetensors")))


def end_of(run: Path) -> str:
    last = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    return hashed(
        [*sorted(last.glob("*.safetensors")), *sorted(run.glob("samples/*")), *sorted(run.glob("model/unet/*"))]
    )


def hashed(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def log_of(run: Path) -> list[dict]:
    """Return the complete records of metrics.jsonl, without the values that depend on the clock."""
    records = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill cut short
            records.append({key: value for key, value in json.loads(line).items() if key in LOGGED})
    return records


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 8):
    """Mount a small tmpfs and give its folder, or None if this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True
    )
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def run_campaign(scratch: Path, kills: int, faults: int, seed: int) -> dict:
    """Run the campaign; return its numbers."""
    begun = time.monotonic()
    campaign = Campaign(scratch, seed)
    run = scratch / "run"

    def killed() -> int:
        return sum(count for name, count in campaign.counts.items() if name.startswith("killed"))

    while killed() < kills:
        half = sum(count for name, count in campaign.counts.items() if name.startswith(INSIDE))
        campaign.disturb(run, campaign.kill_while_writing if half < killed() / 2 else campaign.kill)
        show(campaign.counts)
    others = [campaign.terminate, campaign.second_run, campaign.limit_files]
    others += [functools.partial(campaign.damage, damage=damage) for damage in DAMAGES]
    for number in range(faults):
        campaign.disturb(run, others[number % len(others)])
        show(campaign.counts)
    with small_disk(scratch / "disk") as disk:
        for _ in range(faults // 6 if disk else 0):
            campaign.disturb(disk / "run", campaign.fill_disk)
            campaign.read_only(disk)
            show(campaign.counts)
    while run.exists():
        campaign.disturb(run, campaign.nothing)
    return {
        "kills": killed(),
        "counts": dict(sorted(campaign.counts.items())),
        "lost": 0,  # a loss ends the campaign
        "steps_a_run": STEPS,
        "seconds": round(time.monotonic() - begun),
        "machine": processor(),
        "command": f"python tests/campaigns/torture.py --kills {kills} --faults {faults} --seed {seed}",
    }


def processor() -> str:
    """Return the name and cores of the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def show(counts: Counter[str]) -> None:
    print("\x1b[2K\r" + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())), end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--faults", type=int, default=30, help="other disturbances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            figures = run_campaign(Path(scratch), arguments.kills, arguments.faults, arguments.seed)
        except Mismatch as mismatch:
            print(f"\nLOST: {mismatch}")
            return 1
    print()
    print(json.dumps(figures, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
