"""Atomic and durable writes, a folder lock, and the checks that protect existing files."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddpm.common.errors import RunStopped, UserError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a full disk, a quota, a file-size limit


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder itself, which the kernel frees when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes, *, flushed: bool = False) -> None:
    """Write beside and rename, so that the file is never half there; if `flushed`, not after a power cut either."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        if flushed:
            sync(beside)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # never made, where the folder is none
            beside.unlink()
        raise


def sync(path: Path) -> None:
    """Flush a file, or the names that a folder holds, to the disk: milliseconds each, not for thousands of files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_text(settings: dict[str, Any]) -> str:
    """JSON, alike for like settings."""
    return json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False)


def content_key(settings: dict[str, Any]) -> str:
    """Twenty hexadecimal digits that name these settings and no others."""
    return hashlib.blake2b(as_text(settings).encode(), digest_size=10).hexdigest()


def check_target(path: str | Path, endings: tuple[str, ...], *, overwrite: bool = False) -> Path:
    """The path, if it has one of the endings and is free (or may be replaced); UserError otherwise.

    Called before the work starts, so that an hour of sampling does not end in a refusal.
    """
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise UserError(f"{path} should end in {' or '.join(endings)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another name or pass --overwrite")
    return path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A name to write to; renamed to `path` when the block ends, removed when it fails.

    Raises RunStopped where the disk is full, UserError where the place cannot be written.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the ending, from which writers tell the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        kind = RunStopped if error.errno in NO_SPACE else UserError
        raise kind(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # renamed already, or in a folder that is none
            beside.unlink()
