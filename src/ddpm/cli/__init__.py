"""The command line: one file per command. This module gathers them and turns errors into one line and an exit code."""

import os
import sys
from typing import Annotated, Any

import typer

from ddpm.cli.app import app as page
from ddpm.cli.convert import convert
from ddpm.cli.data import data
from ddpm.cli.distill import distill
from ddpm.cli.edit import edit
from ddpm.cli.evaluate import evaluate
from ddpm.cli.export import export
from ddpm.cli.info import info
from ddpm.cli.interpolate import interpolate
from ddpm.cli.options import command_line
from ddpm.cli.plot import plot
from ddpm.cli.presets import presets
from ddpm.cli.push import push
from ddpm.cli.restore import restore
from ddpm.cli.sample import sample
from ddpm.cli.trace import trace
from ddpm.cli.train import CONTEXT, TrainCommand, train
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import NO_SPACE
from ddpm.common.names import VERSION

INTERRUPTED = 130  # exit code of a process that Ctrl-C has ended; Typer returns it, too
HELP_NAMES = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="ddpm",
    help="Denoising diffusion probabilistic models: train, sample, trace, evaluate, restore and edit.",
    epilog="Begin with: ddpm sample digits",
    context_settings=HELP_NAMES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(cls=TrainCommand, context_settings=CONTEXT | HELP_NAMES)(train)
app.command(context_settings=CONTEXT | HELP_NAMES)(distill)
for command in (sample, trace, evaluate, restore, edit, interpolate, info, data, presets, convert, export, push):
    app.command(context_settings=HELP_NAMES)(command)
app.add_typer(plot)
app.command("app", context_settings=HELP_NAMES)(page)

# of Typer's own copy of Click, which exports only some of its errors
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def print_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        print(VERSION)
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Denoising diffusion probabilistic models: train, sample, trace, evaluate, restore and edit."""


def main() -> None:
    """Run the command line; exit with 0, 1 (the run had to stop), 2 (the user can fix it) or 130 (Ctrl-C)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; print an error as one line to stderr."""
    command = typer.main.get_command(app)
    command_line.set(arguments)
    try:
        code = command.main(arguments or ["--help"], prog_name="ddpm", standalone_mode=False, obj=arguments) or 0
        return complain("interrupted", code) if code == INTERRUPTED else code
    except (typer.Abort, KeyboardInterrupt):
        return complain("interrupted", INTERRUPTED)
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except UsageError as error:
        return complain(usage_line(error), 2)
    except UserError as error:
        return complain(str(error), 2)
    except RunStopped as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; print nothing more
        return 0
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return complain("out of memory: try a smaller --batch-size", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return complain(f"{error.strerror or error}{where}", 1 if error.errno in NO_SPACE else 2)


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the CPU ran out of memory. PyTorch has no exception class for the CPU's."""
    name = type(error).__name__
    return name in ("OutOfMemoryError", "MemoryError") or "DefaultCPUAllocator" in str(error)


def complain(message: str, code: int) -> int:
    """Print `ddpm: error: …` as one line and return the exit code."""
    print("ddpm: error:", " ".join(message.split()), file=sys.stderr)
    return code


def usage_line(error: Any) -> str:
    """Return Click's message, what a missing argument takes, and the command that shows help."""
    message = error.format_message().rstrip(".")
    see = f"see '{error.ctx.command_path if error.ctx else 'ddpm'} --help'"
    if message.endswith("?"):
        return f"{message} ({see})"
    if type(error).__name__ == "MissingParameter" and error.param and error.param.help:
        message += f": {error.param.help}"
    return f"{message}; {see}"
