"""The two errors that the command line turns into one line and an exit code."""


class UserError(Exception):
    """Something the user can put right; the message says what was wrong and what would be right. Exit code 2."""


class RunStopped(Exception):
    """The run itself had to stop (loss not finite, no space left on the disk); what was saved stays. Exit code 1."""
