"""The command line: one file a verb. Here they are gathered, and errors become one line and an exit code."""

import os
import sys
from typing import Any

import torch
import typer

from ddpm.cli.app import app as page
from ddpm.cli.convert import convert
from ddpm.cli.data import data
from ddpm.cli.edit import edit
from ddpm.cli.evaluate import evaluate
from ddpm.cli.interpolate import interpolate
from ddpm.cli.plot import plot
from ddpm.cli.presets import presets
from ddpm.cli.push import push
from ddpm.cli.restore import restore
from ddpm.cli.sample import sample
from ddpm.cli.trace import trace
from ddpm.cli.train import CONTEXT, train
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import NO_SPACE

app = typer.Typer(
    name="ddpm",
    help="Denoising diffusion probabilistic models: train, sample, watch, judge, restore and edit.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(context_settings=CONTEXT)(train)
for verb in (sample, trace, evaluate, restore, edit, interpolate, data, presets, convert, push):
    app.command()(verb)
app.add_typer(plot)
app.command("app")(page)

# Typer has brought its own copy of Click since 0.20; what it exports leads to the class in either case
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; exit 0, 1 (the run had to stop), 2 (the user can put it right) or 130 (Ctrl-C)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors go to stderr as one line."""
    command = typer.main.get_command(app)
    try:
        return command.main(arguments or ["--help"], prog_name="ddpm", standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        return complain("interrupted", 130)
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except UsageError as error:
        return complain(usage_line(error), 2)
    except UserError as error:
        return complain(str(error), 2)
    except RunStopped as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to say
        return 0
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return complain("the memory does not suffice: fewer images at once (--batch-size) take less", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return complain(f"{error.strerror or error}{where}", 1 if error.errno in NO_SPACE else 2)


def out_of_memory(error: BaseException) -> bool:
    """An accelerator's memory, or the processor's: that has no exception of its own in PyTorch."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def complain(message: str, code: int) -> int:
    """Print `ddpm: error: …` as one line and hand back the exit code."""
    print("ddpm: error:", " ".join(message.split()), file=sys.stderr)
    return code


def usage_line(error: Any) -> str:
    """Click's message, which names the nearest verb or option, and the way to the help."""
    message = error.format_message().rstrip(".?")
    return f"{message}; see '{error.ctx.command_path if error.ctx else 'ddpm'} --help'"
