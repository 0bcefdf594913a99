"""The run directory: what a run writes there, who may have it, and how it is emptied for the next."""

import shutil
from pathlib import Path

from ddpm.errors import UserError
from ddpm.interop.folder import read_json
from ddpm.training.lock import RunLock

# What a run writes in its directory. The configuration goes first when a run makes way for another, so that nobody goes
# on with what is half removed; what a run is known by (`is_run`) goes last.
WRITTEN = ["config.yaml", "model", "best", "samples", "set_aside", "tensorboard", "wandb", "wandb_id"]
WRITTEN += ["checkpoints", "metrics.jsonl"]
UNFINISHED = ("new", "old", "writing")  # endings of the hidden names that a killed process may leave of these


def claim(out: Path, resume: bool, overwrite: bool) -> RunLock:
    """Make the run directory and take its lock."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a directory")
    begun, occupied = (out / "config.yaml").exists(), is_run(out)
    if resume and not begun:
        raise UserError(f"no run in {out} to go on with: it has no config.yaml")
    if not resume and not occupied and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds something that is not a run; give another --out")
    if occupied and not resume and not overwrite:
        go_on = f"go on with --resume {out}, " if begun else ""
        raise UserError(f"{out} holds a run already: {go_on}give another --out, or --overwrite")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return RunLock(out)
    except OSError as error:
        raise UserError(f"cannot write in {out}: {error.strerror or error}") from error


def is_run(out: Path) -> bool:
    """Whether a run wrote here. A config.yaml alone does not tell: other programs call theirs so too."""
    return (out / "metrics.jsonl").exists() or (out / "checkpoints").exists()


def empty(out: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in WRITTEN:
        for path in [*(out / f".{name}.{ending}" for ending in UNFINISHED), out / name]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def model_step(folder: Path) -> int:
    """After how many steps a model was saved; -1 where none can be read."""
    try:
        return int(read_json(folder / "ddpm.json")["provenance"]["steps"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return -1
