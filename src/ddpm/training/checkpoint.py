"""The run directory and its checkpoints: safetensors and JSON, never pickle.

A checkpoint is a folder named by its step. It is written under another name, flushed to the disk and renamed, so a
folder with a number is always complete. Checksums detect later damage. A lock keeps a second run out.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import NO_SPACE, atomic_write, is_run, sync
from ddpm.interop.folder import read_json, save_tensors


class RunLock:
    """Held from `__init__` to `release`, or to the death of the process, however it dies.

    The lock is `flock`'s, on the open file, so a leftover file locks nothing; the file's text only tells who holds it.
    """

    def __init__(self, run: Path):
        self._path = run / ".lock"
        self._handle = self._path.open("ab+", buffering=0)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._handle.seek(0)
            holder = self._handle.read(200).decode(errors="replace") or "another process"
            self._handle.close()
            raise UserError(f"{run} is being trained by {holder}; stop that run first, or give another --out") from None
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its text
            self._handle.truncate(0)
            self._handle.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Let the next run in. A directory in which nothing was begun goes; else the file stays, for others to try."""
        run = self._path.parent
        if list(run.iterdir()) == [self._path]:
            self._path.unlink()
            run.rmdir()
        self._handle.close()


# What a run writes in its directory. The configuration goes first when a run makes way for another, so that nobody goes
# on with what is half removed; what a run is known by (`is_run`) goes last.
WRITTEN = ["config.yaml", "model", "best", "samples", "set_aside", "tensorboard", "wandb", "wandb_id"]
WRITTEN += ["checkpoints", "metrics.jsonl"]
UNFINISHED = ("new", "old", "writing")  # endings of the hidden names that a killed process may leave of these


def claim(out: Path, resume: bool, overwrite: bool) -> RunLock:
    """Make the run directory and take its lock."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a directory")
    begun, occupied = (out / "config.yaml").exists(), is_run(out)
    if resume and not begun:
        raise UserError(f"no run in {out} to go on with: it has no config.yaml")
    if not resume and not occupied and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds something that is not a run; give another --out")
    if occupied and not resume and not overwrite:
        go_on = f"go on with --resume {out}, " if begun else ""
        raise UserError(f"{out} holds a run already: {go_on}give another --out, or --overwrite")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return RunLock(out)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror or error}") from error


def empty(out: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in WRITTEN:
        for path in [*(out / f".{name}.{ending}" for ending in UNFINISHED), out / name]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def model_step(folder: Path) -> int:
    """After how many steps a model was saved; -1 where none can be read."""
    try:
        return int(read_json(folder / "ddpm.json")["provenance"]["steps"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return -1


@contextlib.contextmanager
def writing(what: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turn a disk that cannot be written into one line: what was being written, and what is `kept` now."""
    try:
        yield
    except SafetensorError as error:  # safetensors hides the system's error inside its own
        raise RunStopped(f"could not write {what}: {error}; {kept()}") from error
    except OSError as error:
        reason = "no space left on the disk" if error.errno in NO_SPACE else error.strerror or str(error)
        raise RunStopped(f"could not write {what}: {reason}; {kept()}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, on the disk when this returns."""
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    sync(path)


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


STATE, CHECKSUMS = "state.json", "checksums.json"
Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `parts` (tensors by name, one file each: weights, EMA, optimizer, …) and `state` (JSON)."""

    path: Path
    parts: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints/ folder of a run: the newest `keep`, and those asked to be spared."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"{step:06d}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def save(self, step: int, parts: Parts, state: Mapping[str, Any], spare: int | None = None) -> Path:
        """Write the checkpoint of `step`, then remove all but the newest `keep` (and the one of step `spare`).

        Those of later steps are damaged ones that the run went back behind, and go first.
        """
        self.folder.mkdir(exist_ok=True)
        self.sweep()
        beside, path = self.folder / f".writing-{step:06d}", self.path(step)
        try:
            beside.mkdir()
            for name, tensors in parts.items():
                write_tensors(beside / f"{name}.safetensors", tensors)
            atomic_write(beside / STATE, json.dumps(state, indent=1), durable=True)
            sums = {file.name: sha256(file) for file in sorted(beside.iterdir())}
            atomic_write(beside / CHECKSUMS, json.dumps(sums, indent=1), durable=True)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if path.exists():  # a damaged one that the run went back behind
            path.rename(self.folder / f".replaced-{step:06d}")
        beside.rename(path)
        sync(self.folder)
        self._prune(step, spare)
        return path

    def sweep(self) -> None:
        """Remove what a killed process left half written."""
        for path in self.folder.glob(".*-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self, newest: int, spare: int | None) -> None:
        self.sweep()
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-self.keep :]
        for step in reversed(steps):
            if step not in (*kept, spare):
                # renamed first: a kill in the middle of the removal must not leave what looks like a checkpoint
                doomed = self.path(step).rename(self.folder / f".removed-{step:06d}")
                shutil.rmtree(doomed, ignore_errors=True)

    def newest(self, say: Callable[[str], None] = print) -> Checkpoint:
        """The newest checkpoint whose files are as they were written; damaged ones are passed over and named."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(self.path(step))
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                say(f"checkpoint {self.path(step).name} is damaged ({error}); taking the one before")
        if steps:
            raise UserError(f"every checkpoint in {self.folder} is damaged; start again with another --out")
        raise UserError(
            f"no checkpoint in {self.folder}; start the run with ddpm train PRESET --out {self.folder.parent}"
        )

    def _read(self, path: Path) -> Checkpoint:
        sums = json.loads((path / CHECKSUMS).read_text())
        for name, expected in sums.items():
            if not (path / name).is_file():
                raise ValueError(f"{name} is missing")
            if sha256(path / name) != expected:
                raise ValueError(f"{name} has changed since it was written")
        parts = {
            name.removesuffix(".safetensors"): load_file(path / name) for name in sums if name.endswith(".safetensors")
        }
        return Checkpoint(path, parts, json.loads((path / STATE).read_text()))
