"""Files that are never half there, or on the disk for certain, and a lock that a dead process does not keep."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

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
