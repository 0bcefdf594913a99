"""The two errors that the command line turns into one line and an exit code; hints; optional dependencies."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can correct; the message says what is wrong and what to do. Exit code 2."""


class RunStopped(Exception):
    """A run that had to stop (loss not finite, disk full); what was saved stays. Exit code 1."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency; UserError names the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"this needs {module.split('.')[0]}: {install(extra)}") from error


def install(extra: str) -> str:
    """Return the command that installs an extra. The distribution is ddpm-kit: ddpm on PyPI is another project."""
    return f"run pip install 'ddpm-kit[{extra}]'"


def first_line(error: Exception) -> str:
    """Return the first line of an error of another library, or its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a hint for an unknown name: "did you mean …" if a known name is close, else all known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, cutoff)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
