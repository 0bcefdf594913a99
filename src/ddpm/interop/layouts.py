"""Where a model's files are, for every path that a user may name: a run, a checkpoint, a folder of the Hub's cache."""

import re
from pathlib import Path

from ddpm.common.errors import UserError
from ddpm.common.files import is_model, is_run

MEMBERS = ("config.yaml", "metrics.jsonl", "model_index.json", "ddpm.json")  # name one of these and you mean its folder
AVERAGED = "ema.safetensors"  # of a checkpoint of this package
CHECKPOINT = re.compile(r"checkpoint-\d+")  # of Diffusers' training scripts
NETWORKS = ("unet", "unet_ema")


def model_folder(path: Path) -> Path:
    """Return the folder that `load_folder` can read for this path; any other path comes back as it is.

    Raises UserError if the path belongs to a run or a cache that holds no model.
    """
    if path.is_file() and path.name in MEMBERS:
        path = path.parent
    if path.name == "unet" and (path.parent / "model_index.json").is_file():  # of a whole pipeline
        path = path.parent
    if path.name == "snapshots" and path.parent.name.startswith("models--"):
        path = path.parent
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        return _snapshot(path)
    if is_model(path) or is_checkpoint(path):
        return path
    if is_model(path / "model"):
        return path / "model"
    if path.name == "checkpoints" and is_run(path.parent):
        steps = sorted(folder.name for folder in path.iterdir() if is_checkpoint(folder))
        example = path / steps[-1] if steps else path.parent
        raise UserError(f"{path} holds the checkpoints of a run: give one of them, or the run, e.g. {example}")
    if is_run(path):
        raise UserError(f"{path} is a run that has not saved a model yet: continue it with ddpm train --resume {path}")
    if cached := sorted(path.glob("models--*/snapshots")):
        raise UserError(f"{path} is a cache of the Hub: give one of its models, e.g. {cached[0].parent}")
    return path


def is_checkpoint(folder: Path) -> bool:
    """Whether this is RUN/checkpoints/NNNNNN."""
    return folder.absolute().parent.name == "checkpoints" and (folder / AVERAGED).is_file()


def training_folder(folder: Path) -> Path | None:
    """Return the output folder of a Diffusers training script, given a checkpoint in it or a network in that."""
    folder = folder.absolute()
    if folder.name in NETWORKS:
        folder = folder.parent
    return folder.parent if CHECKPOINT.fullmatch(folder.name) else None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that a Diffusers training script wrote to this folder."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _snapshot(repository: Path) -> Path:
    """Return the revision `main` of a repository in the Hub's cache, or its only one."""
    snapshots = {path.name: path for path in (repository / "snapshots").iterdir()}
    main = repository / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    if commit in snapshots:
        return snapshots[commit]
    if len(snapshots) == 1:
        return next(iter(snapshots.values()))
    known = ", ".join(sorted(snapshots)) or "none"
    raise UserError(f"{repository} has no revision main: give one of its snapshots ({known})")
