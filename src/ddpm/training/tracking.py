"""What a run tells of itself: metrics.jsonl always, TensorBoard and Weights & Biases through accelerate."""

import contextlib
import errno
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from ddpm.training.files import write_text


class Tracking:
    """One line a call of `log` in RUN/metrics.jsonl, and the same numbers to the other trackers asked for.

    Args:
        run: the run directory.
        trackers: "tensorboard" and "wandb". TensorBoard is left out where it is not installed.
        step: the run goes on from here; what an interrupted run logged beyond it is cut away.
        config: shown beside the curves.
        name: of the run, for wandb.
    """

    def __init__(self, run: Path, trackers: Sequence[str], step: int, config: dict[str, Any]):
        self.path = run / "metrics.jsonl"
        cut_back(self.path, step)
        self._handle = self.path.open("ab", buffering=0)  # nothing waits in a buffer for a disk that is full
        self._others: list[GeneralTracker] = []
        if "tensorboard" in trackers and importlib.util.find_spec("tensorboard"):
            self._others.append(TensorBoardTracker("tensorboard", run, purge_step=step + 1))
        if "wandb" in trackers:
            self._others.append(
                WandBTracker("ddpm", dir=str(run), name=run.name, id=wandb_id(run), resume="allow", config=config)
            )
        for tracker in self._others:
            tracker.start()

    def log(self, values: dict[str, float | int | str]) -> None:
        """Write one record; it must hold "step"."""
        line = (json.dumps(values) + "\n").encode()
        if self._handle.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._others:
            tracker.log(numbers, step=numbers["step"])

    def sync(self) -> None:
        """On the disk, so that a checkpoint never knows more than the log."""
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        self._handle.close()
        for tracker in self._others:
            with contextlib.suppress(OSError):  # of a full disk the run has told already, and more usefully
                tracker.finish()


def cut_back(path: Path, step: int) -> None:
    """Keep the records up to `step`; a last line that a kill cut short goes too, and one that the disk has spoilt."""
    if path.exists():
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()  # as `log` writes
        kept = [line for line in lines if line.isascii() and record_step(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))


def record_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def wandb_id(run: Path) -> str:
    """The run's name at wandb, kept in the run directory so that a resumed run is the same one there."""
    path = run / "wandb_id"
    if not path.exists():
        write_text(path, os.urandom(4).hex())
    return path.read_text().strip()
