"""The run directory and its checkpoints: safetensors and JSON, never pickle.

A checkpoint is a folder named by its step. It is written under another name, flushed to the disk and renamed, so a
folder with a number is always complete. Checksums detect later damage. A lock keeps a second run out.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import NO_SPACE, atomic_write, file_lock, is_run, sha256, sync
from ddpm.interop.storage import read_json, save_tensors
from ddpm.model import Model
from ddpm.networks.inference import first_non_finite
from ddpm.training.config import SCHEMA, Config
from ddpm.training.fields import json_schema

# What a run writes in its directory, in the order of removal. The configuration goes first: without it nobody can
# resume a run that is half removed. The file that marks a directory as a run (`is_run`) goes last.
WRITTEN = ["config.yaml", SCHEMA, "model", "best", "teacher", "samples", "set_aside", "tensorboard", "wandb"]
WRITTEN += ["wandb_id", "checkpoints", "metrics.jsonl"]
UNFINISHED = ("new", "old", "writing")  # suffixes of the hidden names that a killed process may leave
LOCK = ".lock"


def check_claim(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise UserError if a run may not begin, or resume, in `out`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out must name a directory")
    begun, occupied = (out / "config.yaml").exists(), is_run(out)
    if resume and not begun:
        raise UserError(f"no run in {out} to resume: it has no config.yaml")
    if not resume and not occupied and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds files that are not a run; give another --out")
    if occupied and not resume and not overwrite:
        how = f"resume it with --resume {out}, " if begun else ""
        raise UserError(f"{out} holds a run already: {how}give another --out, or --overwrite")


@contextlib.contextmanager
def claimed(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the run directory and hold its lock. A directory that is still empty at the end is removed.

    Raises UserError if a run may not begin there, another process is training there, or the disk cannot be written.
    """
    check_claim(out, resume=resume, overwrite=overwrite)
    path = out / LOCK
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(path, wait=False))
        except BlockingIOError:
            holder = path.read_text(errors="replace")[:200] or "another process"
            raise UserError(f"{out} is being trained by {holder}; stop that run first, or give another --out") from None
        except OSError as error:
            raise UserError(f"cannot write in {out}: {error.strerror or error}") from error
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its text
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            if list(out.iterdir()) == [path]:
                path.unlink()
                out.rmdir()


def empty(out: Path) -> None:
    """Remove the files of a run, and nothing else."""
    for name in WRITTEN:
        for path in [*(out / f".{name}.{ending}" for ending in UNFINISHED), out / name]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def model_step(folder: Path) -> int:
    """Return the number of steps after which a model was saved, or -1 if no model can be read."""
    try:
        return int(read_json(folder / "ddpm.json")["provenance"]["steps"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return -1


@contextlib.contextmanager
def writing(what: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turn a failed write into RunStopped: one line that names `what` was being written and what `kept()` says."""
    try:
        yield
    except SafetensorError as error:  # safetensors hides the system's error inside its own
        raise RunStopped(f"could not write {what}: {error}; {kept()}") from error
    except OSError as error:
        reason = "no space left on the disk" if error.errno in NO_SPACE else error.strerror or str(error)
        raise RunStopped(f"could not write {what}: {reason}; {kept()}") from error


def write_config(config: Config, out: Path) -> None:
    """Write config.yaml, and before it the schema that its first line names."""
    atomic_write(out / SCHEMA, json_schema(type(config)))
    atomic_write(out / "config.yaml", config.to_yaml(), durable=True)


def write_model(model: Model, folder: Path, say: Callable[[str], None]) -> bool:
    """Save a model and return True. A folder that holds foreign files is left alone, and does not end the run."""
    try:
        model.save(folder)
    except UserError as error:
        say(str(error))
        return False
    return True


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and flush it to the disk."""
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    sync(path)


STATE, CHECKSUMS = "state.json", "checksums.json"
Parts = Mapping[str, Mapping[str, Tensor]]


def check_classes(source: str, before: list[str] | None, now: list[str] | None, run: Path) -> None:
    """Raise UserError if the data's classes have other numbers than in the checkpoint of a run."""
    if before is None or now is None or before == now:
        return
    number, was, is_now = next((n, a, b) for n, (a, b) in enumerate(zip_longest(before, now)) if a != b)
    raise UserError(
        f"class {number} of {source} was {was or 'none'} and is now {is_now or 'none'}: give the classes the names "
        f"they had, or start another run with --init {run} --out NEW"
    )


def first_non_finite_part(parts: Parts) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, as "part: tensor", or None if all are finite."""
    return first_non_finite({f"{part}: {name}": t for part, tensors in parts.items() for name, t in tensors.items()})


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `parts` (tensors by name, one file each: weights, EMA, optimizer, …) and `state` (JSON)."""

    path: Path
    parts: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints/ folder of a run: the newest `keep`, and one that is spared."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step, which need not exist."""
        return self.folder / f"{step:06d}"

    def steps(self) -> list[int]:
        """Return the steps of the existing checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def kept(self) -> str:
        """Say which checkpoint is kept, for the message of a run that ends early."""
        steps = self.steps()
        return f"the newest good checkpoint is {self.path(steps[-1])}" if steps else "there was no checkpoint"

    def save(self, step: int, parts: Parts, state: Mapping[str, Any], spare: int | None = None) -> Path:
        """Write the checkpoint of `step`, then remove all but the newest `keep` and the one of step `spare`.

        Checkpoints of later steps are damaged ones from before a rollback; they are removed first.

        Raises ValueError if a tensor is not finite; nothing is written then.
        """
        if bad := first_non_finite_part(parts):
            raise ValueError(f"{bad} is not finite")
        self.folder.mkdir(exist_ok=True)
        self.sweep()
        temporary, path = self.folder / f".writing-{step:06d}", self.path(step)
        try:
            temporary.mkdir()
            for name, tensors in parts.items():
                write_tensors(temporary / f"{name}.safetensors", tensors)
            atomic_write(temporary / STATE, json.dumps(state, indent=1), durable=True)
            sums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            atomic_write(temporary / CHECKSUMS, json.dumps(sums, indent=1), durable=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():  # a damaged one from before a rollback
            path.rename(self.folder / f".replaced-{step:06d}")
        temporary.rename(path)
        sync(self.folder)
        self._prune(step, spare)
        return path

    def sweep(self) -> None:
        """Remove checkpoints that a killed process left half written or half removed."""
        for path in self.folder.glob(".*-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self, newest: int, spare: int | None) -> None:
        self.sweep()
        steps = self.steps()
        kept = [step for step in steps if step <= newest][-self.keep :]
        for step in reversed(steps):
            if step not in (*kept, spare):
                # Rename first: a kill during the removal must not leave a folder that looks like a checkpoint.
                doomed = self.path(step).rename(self.folder / f".removed-{step:06d}")
                shutil.rmtree(doomed, ignore_errors=True)

    def newest(self, say: Callable[[str], None] = print) -> Checkpoint:
        """Return the newest checkpoint that is intact and finite; `say` is called with a line for each one passed over.

        Raises UserError if there is none.
        """
        steps = self.steps()
        if not steps:
            raise UserError(
                f"no checkpoint in {self.folder}; start the run with ddpm train PRESET --out {self.folder.parent}"
            )
        reasons: list[str] = []
        for step in reversed(steps):
            path = self.path(step)
            if reasons:
                say(f"{reasons[-1]}; taking the one before")
            try:
                checkpoint = self._read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                reasons.append(f"checkpoint {path.name} is damaged ({error})")
                continue
            if bad := first_non_finite_part(checkpoint.parts):
                reasons.append(f"checkpoint {path.name} holds values that are not finite ({bad})")
                continue
            return checkpoint
        raise UserError(f"every checkpoint in {self.folder} is unusable; start again with another --out: {reasons[0]}")

    def to_resume(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest good checkpoint, or None if the run was stopped before its first one."""
        if self.steps():
            return self.newest(say)
        run = self.folder.parent
        if (kept := model_step(run / "model")) >= 0:
            raise UserError(
                f"{run} holds a model of step {kept:,} but no checkpoint to resume from: start a new run from its "
                f"weights with --init {run} --out NEW, or start this one again with --overwrite"
            )
        say("no checkpoint found; starting from step 0")
        return None

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
