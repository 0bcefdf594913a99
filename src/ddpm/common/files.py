"""Atomic and durable writes, a lock, content keys, and the checks that protect existing files."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.common.errors import RunStopped, UserError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a full disk, a quota, a file-size limit


def user_path(name: str | Path) -> Path:
    """Expand `~` and `~user` in a path that a user wrote; every such path passes through here, exactly once.

    Shells expand a leading tilde, but not the one in `--out=~/run`. Raises UserError if there is no such user.
    """
    path = os.path.expanduser(name)  # not Path.expanduser: Path drops the ./ of ./~x, a file whose name begins with ~
    if path.startswith("~"):
        raise UserError(f"{name}: there is no user {Path(path).parts[0][1:]!r}; write the path in full")
    return Path(path)


def atomic_write(path: Path, data: bytes | str, *, durable: bool = False) -> None:
    """Write a file so that readers see the old content or all of the new one.

    Args:
        path: in a folder that exists.
        data: text is written as UTF-8.
        durable: also survive a power cut. Costs some milliseconds, so not for thousands of files.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # it was never created
            temporary.unlink()
        raise
    if durable:
        sync(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; it is renamed to `path` if the block succeeds and removed if it fails.

    For libraries that write files themselves. Missing folders are created.

    Raises:
        RunStopped: the disk is full.
        UserError: the file cannot be written there.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, which tells writers the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        kind = RunStopped if error.errno in NO_SPACE else UserError
        raise kind(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never created
            temporary.unlink()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder inside a block; a missing file is created.

    The lock is `flock`'s, which the kernel releases if the process dies, however it dies. A file that is left over
    locks nothing.

    Args:
        path: what to lock.
        wait: until another process has released the lock; otherwise raise BlockingIOError.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time into a block; the folder is created if needed, and no lock file is left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder):
        yield


def is_run(folder: Path) -> bool:
    """Whether a training run wrote in this folder.

    The sign is metrics.jsonl, the first file of a run and the last that is removed. A config.yaml or a folder
    `checkpoints` is no sign: other programs use these names too.
    """
    return (folder / "metrics.jsonl").is_file()


def is_model(folder: Path) -> bool:
    """Whether this folder has the layout of a model: Diffusers' pipeline folder of any age, or its network alone."""
    names = ("model_index.json", "ddpm.json", "unet/config.json")
    return any((folder / name).is_file() for name in names) or (
        (folder / "config.json").is_file() and any(folder.glob("diffusion_pytorch_model*"))
    )


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UserError if `path` exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: give another --out, or --overwrite")


def check_output(path: str | Path, suffixes: tuple[str, ...], *, overwrite: bool = False) -> Path:
    """Return the path if it has one of the suffixes and may be written; raise UserError otherwise.

    Call it before the work starts, so that an hour of sampling does not end in a refusal.
    """
    path = user_path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} should end in {' or '.join(suffixes)}")
    refuse_existing(path, overwrite)
    return path


def as_json(settings: dict[str, Any]) -> str:
    """Canonical JSON: equal settings give equal text."""
    return json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False)


def content_key(settings: dict[str, Any]) -> str:
    """Twenty hexadecimal digits that identify these settings."""
    return hashlib.blake2b(as_json(settings).encode(), digest_size=10).hexdigest()


def sha256(path: Path) -> str:
    """Return the checksum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Twenty hexadecimal digits that identify a file's content; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()
    except OSError:
        return ""
