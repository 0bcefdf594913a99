"""Checkpoints: everything a run needs to go on exactly, in safetensors and JSON, never pickle.

A checkpoint is a folder named by its step. It is written beside under another name, flushed to the disk and renamed,
so that a folder with a number is always whole; checksums tell when the disk has spoilt it since.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm.errors import UserError
from ddpm.files import sync
from ddpm.training.files import sha256, write_tensors, write_text

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
            write_text(beside / STATE, json.dumps(state, indent=1))
            sums = {file.name: sha256(file) for file in sorted(beside.iterdir())}
            write_text(beside / CHECKSUMS, json.dumps(sums, indent=1))
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
