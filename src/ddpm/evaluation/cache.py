"""On-disk cache of expensive evaluation results: arrays in chunks, in folders named by a hash of their settings.

A chunk is written under a temporary name, flushed and renamed. So every chunk that exists is complete, and a killed
evaluation resumes with the chunks that are missing. Several processes share the work: each computes its own chunks,
all wait at a barrier, then any of them reads the whole array.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from ddpm.common.distributed import barrier, is_main, my_share
from ddpm.common.errors import RunStopped
from ddpm.common.files import as_json, atomic_write, content_key, user_path

SETTINGS = "settings.json"
MAX_MAPPED = 16  # files of one array that stay open, far fewer than a process may have


class Rows(Protocol):
    """Rows by number, in memory or on disk; a slice or an index array returns an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def cache_folder() -> Path:
    """Return $DDPM_CACHE, else $XDG_CACHE_HOME/ddpm, else ~/.cache/ddpm. An empty variable counts as not set."""
    if folder := os.environ.get("DDPM_CACHE"):
        return user_path(folder)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ddpm"


class Chunks:
    """An array of `total` rows, computed in chunks of `chunk` rows, one file per chunk.

    Reading maps the files into memory: `rows[3:700]` and `rows[[5, 9]]` load no more than they return.

    Args:
        kind: what the rows are, e.g. "features"; the folder's name starts with it.
        settings: everything that the rows depend on, as JSON values; the folder's name ends with their hash.

    Raises RunStopped if the folder exists with other settings.
    """

    def __init__(self, kind: str, settings: dict[str, Any], total: int, chunk: int):
        self.folder = cache_folder() / "evaluation" / f"{kind}-{content_key(settings)}"
        self.total, self.chunk = total, chunk
        self._maps: dict[int, np.ndarray] = {}
        self._claim(settings)

    def _claim(self, settings: dict[str, Any]) -> None:
        """Write the settings into the folder, or compare with those that are there."""
        note = self.folder / SETTINGS
        self.folder.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            atomic_write(note, as_json(settings), durable=True)
        elif note.read_text(encoding="utf-8") != as_json(settings):
            raise RunStopped(f"{self.folder} was made with other settings than its name says: remove it")

    def __len__(self) -> int:
        return self.total

    @property
    def starts(self) -> list[int]:
        """The first row of every chunk."""
        return list(range(0, self.total, self.chunk))

    def bounds(self, start: int) -> range:
        """Return the rows of the chunk that begins at `start`."""
        return range(start, min(start + self.chunk, self.total))

    def path(self, start: int) -> Path:
        """Return the file of the chunk that begins at `start`."""
        rows = self.bounds(start)
        return self.folder / f"{rows.start:08d}-{rows.stop:08d}.npy"

    def write(self, start: int, rows: np.ndarray) -> None:
        """Store one chunk."""
        buffer = io.BytesIO()
        np.save(buffer, rows)
        atomic_write(self.path(start), buffer.getvalue(), durable=True)

    def missing(self) -> list[int]:
        """Return the first rows of the chunks that are not stored."""
        return [start for start in self.starts if not self.path(start).exists()]

    def my_missing(self) -> list[int]:
        """Return the missing chunks that this process has to compute."""
        starts = self.starts
        mine = {starts[index] for index in my_share(len(starts))}
        return [start for start in self.missing() if start in mine]

    def wait(self) -> None:
        """Wait until every process has computed its chunks; call it in every process.

        Raises RunStopped if chunks are missing afterwards: the processes do not share the folder.
        """
        barrier()
        if missing := self.missing():
            raise RunStopped(
                f"{len(missing)} chunks of {self.folder} are missing: put $DDPM_CACHE on a disk that all processes "
                "share, and run the command again"
            )

    def fill(self, compute: Callable[[range], Iterable[np.ndarray]], title: str, progress: bool = True) -> None:
        """Compute the chunks that are missing; every process must call it, and does its share.

        Args:
            compute: rows of one chunk -> their values, in parts of any size.
            title: of the progress bar.
        """
        missing = self.my_missing()
        rows = sum(len(self.bounds(start)) for start in missing)
        with tqdm(total=rows, desc=title, unit="image", disable=not (progress and is_main() and missing)) as bar:
            for start in missing:
                parts = []
                for part in compute(self.bounds(start)):
                    parts.append(part)
                    bar.update(len(part))
                self.write(start, np.concatenate(parts))
        self.wait()

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> np.ndarray:
        return self.take(rows)

    def take(self, rows: slice | np.ndarray | list[int], columns: slice | None = None) -> np.ndarray:
        """Return these rows; only the given columns of them take memory."""

        def block(number: int) -> np.ndarray:
            return self._map(number) if columns is None else self._map(number)[:, columns]

        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.total))
        rows = np.asarray(rows)
        first = block(int(rows[0]) // self.chunk if len(rows) else 0)  # chunk 0 may not be there yet
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for number in np.unique(rows // self.chunk).tolist():
            here = rows // self.chunk == number
            found[here] = block(number)[rows[here] % self.chunk]
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the chunks in order."""
        for start in self.starts:
            yield self._map(start // self.chunk)

    def _map(self, number: int) -> np.ndarray:
        """Map a chunk's file into memory; the least recently used of MAX_MAPPED files is closed."""
        found = self._maps.pop(number, None)
        if found is None:
            path = self.path(number * self.chunk)
            try:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:  # truncated, e.g. by a power cut
                path.unlink(missing_ok=True)
                raise RunStopped(f"{path} was damaged and is removed: run the command again") from error
        self._maps[number] = found
        if len(self._maps) > MAX_MAPPED:
            del self._maps[next(iter(self._maps))]
        return found
