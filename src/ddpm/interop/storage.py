"""Model folders as files: read untrusted folders safely, write complete ones only."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write, is_model, sync

MAX_JSON_BYTES = 16 * 2**20
WEIGHTS = "diffusion_pytorch_model"
# Diffusers' names: whole, one of several shards, and the index of the shards, each with or without a variant
WHOLE = re.compile(rf"{WEIGHTS}(?:\.(\w+))?\.(safetensors|bin)")
SHARD = re.compile(rf"{WEIGHTS}(\.\w+)?-\d{{5}}-of-\d{{5}}(\.\w+)?\.(safetensors|bin)")
INDEX = re.compile(rf"{WEIGHTS}\.(safetensors|bin)\.index(?:\.(\w+))?\.json")
VARIANTS = ("", "ema", "fp16", "bf16")  # from the most to the least wanted; any other comes after them
# The files of a model folder, ours or Diffusers' of any age. A name that ends in a number was left by a process killed
# in `atomic_write`, .DS_Store by Finder.
PARTS = re.compile(
    rf"(unet/)?(config\.json|{WEIGHTS}[\w.-]*|pytorch_model\.bin)|(scheduler/)?scheduler_config\.json"
    r"|model_index\.json|ddpm\.json|README\.md|samples\.png"
    r"|\.(ddpm\.json|README\.md)\.\d+|(.*/)?\.DS_Store"
)

Checked = TypeVar("Checked", bound=BaseModel)


class ModelFolder:
    """A folder from which only fixed names are read.

    A link that leaves the folder is an error; in the Hub's cache, where every file is a link into the repository's
    `blobs`, links to there are followed.
    """

    def __init__(self, path: Path):
        if path.is_file():
            raise UserError(f"{path} is a file, no model folder: ddpm convert {path} NEW_FOLDER makes one of weights")
        if not path.is_dir():
            raise UserError(f"{path} is not a folder")
        self.path, self.root = path, path.resolve()
        self.homes = [self.root]
        if self.root.parent.name == "snapshots":
            self.homes.append(self.root.parent.parent / "blobs")

    def find(self, *names: str) -> Path | None:
        """Return the first of these files that exists."""
        for name in names:
            file = self.root / name
            if file.is_file():
                if not any(file.resolve().is_relative_to(home) for home in self.homes):
                    raise UserError(f"{self.path / name} is a link out of its folder: replace it by the file itself")
                return file
        return None

    def json(self, *names: str) -> dict[str, Any] | None:
        """Return the first of these JSON files that exists, as a dict."""
        file = self.find(*names)
        return None if file is None else read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of at most 16 MiB."""
    if file.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{file} is larger than {MAX_JSON_BYTES >> 20} MiB: that is no configuration")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} should hold a JSON object, not a {type(value).__name__}")
    return value


def checked(model: type[Checked], values: dict[str, Any], where: str) -> Checked:
    """Return `values` as a `model`; UserError names the first field that is wrong."""
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {field + ': ' if field else ''}{message}") from None


class Weights:
    """Named tensors whose shapes are known before any is read.

    Args:
        where: their file, for error messages.
        shapes: shape of each tensor.
        read: name -> tensor.
    """

    def __init__(self, where: str, shapes: dict[str, tuple[int, ...]], read: Callable[[str], Tensor]):
        self.where, self.shapes, self.read = where, shapes, read

    @classmethod
    def of_tensors(cls, where: str, tensors: dict[str, Tensor]) -> "Weights":
        return cls(where, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)

    @classmethod
    def of_safetensors(cls, *files: Path) -> "Weights":
        """Open one file, or all shards of one model."""
        shapes: dict[str, tuple[int, ...]] = {}
        handles = {}
        for file in files:
            try:
                handle = safe_open(file, "pt")
            except SafetensorError as error:
                raise UserError(f"{file} is not a safetensors file (or it is damaged): {error}") from None
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                shapes[name] = tuple(handle.get_slice(name).get_shape())
                handles[name] = handle
        return cls(str(files[0]), shapes, lambda name: handles[name].get_tensor(name))


def safetensors_in(folder: ModelFolder, prefix: str) -> Weights:
    """Return the weights of a folder, whole or in shards, of any variant; pickled ones are named and left alone."""
    files = weight_files(folder, prefix, "safetensors")
    if files:
        return Weights.of_safetensors(*files)
    pickled = weight_files(folder, prefix, "bin")
    if pickled:
        raise UserError(
            f"{folder.path} holds pickled weights ({pickled[0].name}), and opening a pickle can run code: "
            f"ddpm convert {folder.path} NEW_FOLDER makes safetensors of it"
        )
    raise UserError(f"{folder.path} holds no weights: there should be {prefix}{WEIGHTS}.safetensors")


def weight_files(folder: ModelFolder, prefix: str, ending: str) -> list[Path]:
    """Return the files of a folder's weights: one, all shards, or none.

    Args:
        prefix: of the network in the folder: "unet/" or "".
        ending: "safetensors" or "bin".
    """
    names = sorted(path.name for path in (folder.root / prefix).glob("*"))
    whole = {match[1] or "": match[0] for name in names if (match := WHOLE.fullmatch(name)) and match[2] == ending}
    index = {match[2] or "": match[0] for name in names if (match := INDEX.fullmatch(name)) and match[1] == ending}
    found = {**index, **whole}
    if not found:
        old = folder.find(f"{prefix}pytorch_model.bin") if ending == "bin" else None
        return [] if old is None else [old]
    chosen = prefix + found[min(found, key=_variant_order)]
    if not chosen.endswith(".json"):
        file = folder.find(chosen)
        return [] if file is None else [file]
    return shards(folder, prefix, folder.json(chosen) or {})


def _variant_order(variant: str) -> tuple[int, bool, str]:
    known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return known, variant.startswith("non_"), variant  # "non_ema" is the network before averaging


def shards(folder: ModelFolder, prefix: str, index: dict[str, Any]) -> list[Path]:
    """Return the files that an index names: only shards of this model, beside the index."""
    weight_map = index.get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    files = [folder.find(prefix + name) for name in names if SHARD.fullmatch(name)]
    found = [file for file in files if file is not None]
    if not found or len(found) < len(names):
        raise UserError(f"{folder.path / prefix}: the weights' index names files that are not there")
    return found


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, then replace the model folder `folder` by it.

    One of the two is complete on the disk at any moment, even if the machine loses power.

    Raises UserError if `folder` exists and is not a model folder, or holds other files too.
    """
    folder = folder.resolve()
    beside, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if is_model(old):
        put_back(old, folder)
    if folder.exists() and not (folder.is_dir() and (is_model(folder) or not any(folder.iterdir()))):
        raise UserError(f"{folder} exists and is no model folder: give another name")
    foreign = no_part_of_a_model(folder)
    if foreign is not None:
        raise UserError(
            f"{folder} holds {foreign}, which is no part of a model and would be lost: move it, or give another name"
        )
    for leftover in (beside, old):  # left by a process that was killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write(beside)
        for path in (*beside.rglob("*"), beside):
            sync(path)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        put_back(old, folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def put_back(old: Path, folder: Path) -> None:
    """Undo the first of two renames if the second did not happen."""
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def no_part_of_a_model(folder: Path) -> str | None:
    """Return the relative path of a file that does not belong to a model, if there is one; any link counts as one."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (file.relative_to(folder).as_posix() for file in files)
    return next((name for name in names if not PARTS.fullmatch(name)), None)


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of any new file; safetensors makes it private."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata)
    file.chmod(mode)


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, and its folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
