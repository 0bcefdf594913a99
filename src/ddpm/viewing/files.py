"""Files that are whole or absent, and never replace another by accident."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm.errors import RunStopped, UserError
from ddpm.files import NO_SPACE


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
