"""Trainings that the page starts and stops, each in a process of its own, which outlives the page."""

import functools
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from ddpm.common.errors import UserError
from ddpm.common.files import is_run
from ddpm.training.checkpoint import LOCK
from ddpm.training.config import preset_about, preset_names
from ddpm.training.guards import TERMINATED

CLOCK = 2.0  # seconds; psutil knows when a process began to about one
FEWEST_MINUTES, MOST_MINUTES = 1, 7 * 24 * 60
MOST_LOG_BYTES = 4096  # of the end of a log, for the reason of a failure


def presets() -> list[str]:
    """Return the names of all presets, those for a CPU first."""
    return sorted(preset_names(), key=lambda name: ("GPU" in preset_about(name), name))


def process_of(run: Path) -> psutil.Process | None:
    """Return the process that trains a run now: the one that its lock names, if it was alive when it wrote the lock."""
    try:
        lock = run / LOCK
        found = re.fullmatch(r"process (\d+) on (.*)", lock.read_text())
        if not found or found[2] != socket.gethostname():
            return None
        process = psutil.Process(int(found[1]))
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended or process.create_time() > lock.stat().st_mtime + CLOCK else process
    except (OSError, psutil.Error):
        return None


class Trainings:
    """The trainings that were started in a folder of runs since the page began."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: dict[str, subprocess.Popen] = {}

    def start(self, name: str, preset: str, data: str, minutes: float | None) -> str:
        """Start a training of `minutes` in the run `name`, and say so; `data` may be empty: the preset's own.

        What it prints goes to NAME.log beside the run. Raises UserError if a field is not possible.
        """
        if not re.fullmatch(r"\w[\w.-]*", name or ""):
            raise UserError("the run needs a name of letters, digits, dots and hyphens")
        run, log = self.folder / name, self.folder / f"{name}.log"
        if run.exists():
            raise UserError(f"{run} exists: give the run another name")
        if self.prepares(name):
            raise UserError(f"a run {name} is being prepared: give this one another name")
        if preset not in preset_names():
            raise UserError(f"no preset {preset!r}")
        if minutes is None or not FEWEST_MINUTES <= minutes <= MOST_MINUTES:
            raise UserError(f"the minutes must be from {FEWEST_MINUTES} to {MOST_MINUTES:,}")
        command = [sys.executable, "-m", "ddpm", "train", preset, "--out", str(run), "--minutes", f"{minutes:g}"]
        self.folder.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.started[name] = subprocess.Popen(
                [*command, *(["--data", data] if data else [])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the page's terminal does not reach it
            )
        return f"Started {name}. It goes on when the page is closed; what it prints is in {log}."

    def stop(self, name: str) -> str:
        """Stop a training after the step that it is at, and say so. It saves a checkpoint first."""
        run = self.folder if is_run(self.folder) else self.folder / name
        process, own = process_of(run), self.started.get(name)
        with suppress(psutil.Error, ProcessLookupError):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                return f"{name} saves a checkpoint and stops. Resume it with ddpm train --resume {run}"
            if own is not None and own.poll() is None:
                own.terminate()
                return f"{name} stops."
        return f"{name} is not training."

    def prepares(self, name: str) -> bool:
        """Whether a training was started of which there is no run yet."""
        return name in self.started and self.started[name].poll() is None and not is_run(self.folder / name)

    def news(self) -> dict[str, str]:
        """Return what the started trainings do that their runs do not show: prepare, or why they ended."""
        found = {}
        for name, process in list(self.started.items()):  # another page may start one
            code = process.poll()
            if self.prepares(name):
                found[name] = "prepares: reads the images and measures this machine"
            elif code not in (None, 0, TERMINATED):
                found[name] = "stopped" if code == -signal.SIGTERM else self._why(name)
        return found

    def _why(self, name: str) -> str:
        """Return the last line that a training printed."""
        log = self.folder / f"{name}.log"
        lines = re.split(r"[\r\n]+", log.read_bytes()[-MOST_LOG_BYTES:].decode(errors="replace").strip())
        return lines[-1].removeprefix("ddpm: error: ") or "ended"

    def dismiss(self, name: str) -> None:
        """Say no more of a training that has ended."""
        if name in self.started and self.started[name].poll() is not None:
            del self.started[name]


@functools.cache
def trainings_in(folder: Path) -> Trainings:
    """Return the trainings in a folder, which the pages of all models share."""
    return Trainings(folder)
