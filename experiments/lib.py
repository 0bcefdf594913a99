"""Functions that all experiments share: flags, recorded facts, results and pictures."""

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write
from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.model import Model
from ddpm.plotting.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PICTURES = ROOT / "docs" / "pictures"


# the command line


def command_line(documentation: str) -> argparse.ArgumentParser:
    """Parser of a script, described by the script's docstring."""
    return argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_folders(parser: argparse.ArgumentParser, *, pictures: bool = False, runs: str | None = None) -> None:
    """Add `--out`, and on request `--pictures` and `--runs`, with `runs` as the default of the last."""
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder for the JSON file")
    if pictures:
        parser.add_argument("--pictures", type=Path, default=PICTURES, metavar="FOLDER", help="folder for the pictures")
    if runs is not None:
        help_text = f"folder of the run directories (default: {runs})"
        parser.add_argument("--runs", type=Path, default=Path(runs), metavar="FOLDER", help=help_text)


def launch(main: Callable[[], None]) -> None:
    """Run a script. A `UserError` ends it with a message of one line."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


# what is recorded with every result


def about() -> dict[str, str]:
    """The command and the machine of a result."""
    return {"command": command(), "machine": machine()}


def command() -> str:
    """The command that runs this script again. Absolute paths lose their folders, which only exist on this machine."""
    spec = sys.modules["__main__"].__spec__
    script = [Path(sys.argv[0]).name] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *script, *map(_portable, sys.argv[1:])])


def _portable(word: str) -> str:
    flag, equals, value = word.rpartition("=")
    return flag + equals + (Path(value).name if Path(value).is_absolute() else value)


def machine() -> str:
    """The accelerator, or the processor with the number of cores that this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {cores()} core{'s' * (cores() > 1)}"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def parameter_count(network: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


# results and pictures


def save_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write folder/NAME.json atomically; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    atomic_write(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def load_result(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Result that `save_result` wrote, or None if that experiment was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def save_picture(figure: "Figure", path: Path) -> Path:
    """Write a figure, replacing an older one; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_figure(figure, path, overwrite=True)


def first_images(model: Model, source: str, num: int, *, labels: bool = False) -> tuple[Tensor, Tensor | None]:
    """First `num` images of a SOURCE in the model's size.

    Returns float32 (num, C, H, W) in [-1, 1], and the labels, int64 (num,), or None if `labels` is false.
    """
    channels, *size = model.image_shape
    dataset = open_dataset(source, image_size=tuple(size), channels=channels, labels=labels)
    pixels, found = dataset.batch(list(range(num)))
    return to_float(pixels), found
