"""The command line: one file a verb. Here they are gathered, and errors become one line and an exit code."""

import difflib
import errno
import os
import sys

import click
import typer

from ddpm.cli.sample import sample
from ddpm.errors import RunStopped, UserError

app = typer.Typer(
    name="ddpm",
    help="Denoising diffusion probabilistic models: train, sample, watch, judge, restore and edit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(sample)

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main() -> None:
    """Run the command line; exit 0, 1 (the run had to stop), 2 (the user can put it right) or 130 (Ctrl-C)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors go to stderr as one line."""
    command = typer.main.get_command(app)
    try:
        return command.main(arguments, prog_name="ddpm", standalone_mode=False) or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        return complain("interrupted", 130)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.UsageError as error:
        return complain(usage_line(error, command), 2)
    except (UserError, click.ClickException) as error:
        return complain(getattr(error, "message", str(error)), 2)
    except RunStopped as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to say
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return complain(f"{error.strerror or error}{where}", 1 if error.errno in NO_SPACE else 2)


def complain(message: str, code: int) -> int:
    """Print `ddpm: error: …` as one line and hand back the exit code."""
    print("ddpm: error:", " ".join(message.split()), file=sys.stderr)
    return code


def usage_line(error: click.UsageError, command: click.Command) -> str:
    """Click's message, with the nearest verb where the verb was unknown and the way to the help."""
    message = error.format_message()
    if isinstance(command, click.Group) and error.ctx is not None and error.ctx.command is command:
        attempt = next((word for word in error.ctx.protected_args + error.ctx.args if not word.startswith("-")), "")
        near = difflib.get_close_matches(attempt, command.commands, n=1)
        if near and "ean" not in message:
            message += f" Did you mean {near[0]!r}?"
    path = error.ctx.command_path if error.ctx else "ddpm"
    return f"{message} See '{path} --help'."
