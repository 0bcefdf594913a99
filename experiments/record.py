"""Where experiments leave what they found, and on what machine they found it."""

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PICTURES = ROOT / "docs" / "pictures"


def save_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write folder/NAME.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    atomic_write(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def load_result(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What `save_result` wrote, or None where that experiment was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """What the user can put right ends the command with one line."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"{name}: {error}") from None


def machine() -> str:
    """The accelerator, or the processor with the cores that this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {cores()} core{'s' * (cores() > 1)}"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()
