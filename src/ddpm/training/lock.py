"""One run a directory: a lock that the kernel frees when its process dies."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from ddpm.errors import UserError


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
