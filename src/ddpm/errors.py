"""The two errors that the command line turns into one line and an exit code, and the way to ask for an extra."""

import importlib
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
        raise UserError(f"this needs {module.split('.')[0]}: pip install 'ddpm[{extra}]'") from error
