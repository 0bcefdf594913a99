"""Where evaluations keep what is dear to compute: rows in chunks, named by the content that they were made from.

A chunk is written beside its name, flushed and renamed, so what is there is whole: a killed evaluation goes on with the
chunks that are missing, and processes that share the folder need no other word between them.
"""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddpm.common.errors import RunStopped
from ddpm.common.files import as_json, atomic_write, content_key, user_path
from ddpm.common.hardware import process_rank

SETTINGS = "settings.json"
PATIENCE = 3600.0  # seconds without a sign of life after which the other processes are taken for dead
MAPPED = 16  # files of one array that are kept open, fewer by far than a process may have


class Rows(Protocol):
    """Rows by number, in memory or on the disk; a slice or an index array gives an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def cache_folder() -> Path:
    """$DDPM_CACHE, else $XDG_CACHE_HOME/ddpm, else ~/.cache/ddpm; what is set to nothing counts as not set."""
    if folder := os.environ.get("DDPM_CACHE"):
        return user_path(folder)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ddpm"


def sign_of_life() -> None:
    """Tell the processes that wait that part of a chunk is done: a whole one may take hours."""
    _life().touch()


def _life() -> Path:
    return cache_folder() / "evaluation" / "alive"


class Chunks:
    """An array of `total` rows that is computed in chunks of `chunk`, each in a file of its own.

    Reading maps the files into memory: `rows[3:700]` and `rows[[5, 9]]` load no more than they return.
    """

    def __init__(self, kind: str, settings: dict[str, Any], total: int, chunk: int):
        self.folder = cache_folder() / "evaluation" / f"{kind}-{content_key(settings)}"
        self.total, self.chunk = total, chunk
        self._maps: dict[int, np.ndarray] = {}
        self._claim(settings)

    def _claim(self, settings: dict[str, Any]) -> None:
        """Note what the folder belongs to; one of other settings would mean wrong figures, so it ends the run."""
        note = self.folder / SETTINGS
        self.folder.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            atomic_write(note, as_json(settings).encode(), durable=True)
        elif note.read_text() != as_json(settings):
            raise RunStopped(f"{self.folder} was made with other settings than its name says: remove it")

    def __len__(self) -> int:
        return self.total

    @property
    def starts(self) -> list[int]:
        return list(range(0, self.total, self.chunk))

    def bounds(self, start: int) -> range:
        """The rows of the chunk that begins at `start`."""
        return range(start, min(start + self.chunk, self.total))

    def path(self, start: int) -> Path:
        rows = self.bounds(start)
        return self.folder / f"{rows.start:08d}-{rows.stop:08d}.npy"

    def write(self, start: int, rows: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, rows)
        atomic_write(self.path(start), buffer.getvalue(), durable=True)

    def missing(self, starts: list[int] | None = None) -> list[int]:
        return [start for start in (self.starts if starts is None else starts) if not self.path(start).exists()]

    def mine(self) -> list[int]:
        """This process's chunks: a contiguous share."""
        rank, processes = process_rank()
        starts = self.starts
        return starts[rank * len(starts) // processes : (rank + 1) * len(starts) // processes]

    def wait(self) -> None:
        """Return when every chunk is there, whoever makes it."""
        seen, since = None, time.monotonic()
        while missing := len(self.missing()):
            life = missing, _life().stat().st_mtime_ns if _life().exists() else 0  # seen to change: clocks may differ
            if life != seen:
                seen, since = life, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise RunStopped(
                    f"other processes left {missing} chunks of {self.folder} unmade: run the command again"
                )
            time.sleep(0.5)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> np.ndarray:
        return self.take(rows)

    def take(self, rows: slice | np.ndarray | list[int], columns: slice | None = None) -> np.ndarray:
        """These rows, or of rows that have columns some of these, which alone take memory then."""

        def block(number: int) -> np.ndarray:
            return self._map(number) if columns is None else self._map(number)[:, columns]

        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.total))
        rows = np.asarray(rows)
        first = block(int(rows[0]) // self.chunk if len(rows) else 0)  # chunk 0 may still be another process's work
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for number in np.unique(rows // self.chunk).tolist():
            here = rows // self.chunk == number
            found[here] = block(number)[rows[here] % self.chunk]
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """The chunks in order."""
        for start in self.starts:
            yield self._map(start // self.chunk)

    def _map(self, number: int) -> np.ndarray:
        found = self._maps.pop(number, None)
        if found is None:
            path = self.path(number * self.chunk)
            try:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:  # left by a disk that lost what it had taken
                path.unlink(missing_ok=True)
                raise RunStopped(f"{path} was damaged and is removed: run the command again") from error
        self._maps[number] = found  # the newest stands last
        if len(self._maps) > MAPPED:
            del self._maps[next(iter(self._maps))]
        return found
