"""The two errors that the command line turns into one line and an exit code, what to say of
an unknown name or of another library's error, and the way to ask for an extra."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """Something the user can put right; the message says what was wrong and what would be right. Exit code 2."""


class RunStopped(Exception):
    """The run itself had to stop (loss not finite, no space left on the disk); what was saved stays. Exit code 1."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which command installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"this needs {module.split('.')[0]}: {install(extra)}") from error


def install(extra: str) -> str:
    """The command for an extra. It names a folder: the name ddpm on PyPI belongs to another project."""
    return f"run pip install '.[{extra}]' in ddpm's folder"


def first_line(error: Exception) -> str:
    """What another library says, without the pages that may follow; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The hint behind an unknown name: "did you mean …" where something is near, else all there is."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, cutoff)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
