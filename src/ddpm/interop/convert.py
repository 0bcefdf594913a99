"""Convert weights in other formats to a model folder. Only this module opens pickles, and only as plain tensors."""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.interop.diffusers import LoadedParts, assemble, load_folder, save_folder, unet_prefix
from ddpm.interop.layouts import is_checkpoint, model_folder
from ddpm.interop.openai import from_openai, is_openai, parse_flags
from ddpm.interop.storage import ModelFolder, Weights, weight_files

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
STARTS = (b"PK", b"\x80")  # torch.save writes a zip, in old files a bare pickle
WRAPPERS = ("ema", "state_dict", "model", "unet")  # averaged weights are the ones to sample with, so they come first
PREFIXES = ("module.", "model.", "unet.")


def convert(
    source: Path, destination: Path, *, origin: str | None = None, flags: str | None = None, overwrite: bool = False
) -> LoadedParts:
    """Write `source` as a Diffusers pipeline folder and return what it holds.

    Args:
        source: a run, a checkpoint, a model folder of any age with safetensors or pickled weights; or a file of
            weights: Diffusers' (with its config.json in the same folder) or improved-/guided-diffusion's.
        origin: the source as named on the model card; default: the last part of `source`.
        flags: the flags of improved-/guided-diffusion's scripts, e.g. "--image_size 64 --num_head_channels 64".

    Raises UserError if the weights are damaged, do not fit, or cannot be expressed, or if `destination` exists.
    """
    source, destination = user_path(source), user_path(destination)
    if destination.exists() and not overwrite:
        raise UserError(f"{destination} exists: give another folder, or --overwrite")
    if not source.exists():
        raise UserError(f"nothing to convert at {source}")
    origin, source = origin or source.name, model_folder(source)
    parts = read_folder(source) if source.is_dir() else read_file(source, flags)
    if "provenance" not in parts.extra:
        known = {"converted from": origin, **({"flags": flags} if flags else {})}
        parts = replace(parts, extra={**parts.extra, "provenance": known})
    save_folder(destination, parts.network, parts.diffusion, image_shape=parts.image_shape, extra=parts.extra)
    return parts


def read_folder(source: Path) -> LoadedParts:
    """Read a model folder; pickled weights are opened only if there are no others."""
    if is_checkpoint(source):
        return load_folder(source)
    files = ModelFolder(source)
    prefix = unet_prefix(files)
    pickled = [] if weight_files(files, prefix, "safetensors") else weight_files(files, prefix, "bin")
    if not pickled:
        return load_folder(source)
    tensors = {name: part.read(name) for part in map(read_weights, pickled) for name in part.shapes}
    return assemble(files, Weights.of_tensors(str(pickled[0]), tensors))


def read_file(source: Path, flags: str | None) -> LoadedParts:
    """Read a file of weights of any known kind."""
    weights = read_weights(source)
    if is_openai(weights.shapes):
        tensors = {name: weights.read(name) for name in weights.shapes}
        return from_openai(tensors, parse_flags(flags or ""), source.name)
    if "conv_in.weight" not in weights.shapes:
        known = "Diffusers' UNet2DModel, improved-diffusion and guided-diffusion"
        raise UserError(f"{source} holds weights of an unknown kind ({min(weights.shapes)}, ...); known are {known}")
    home = source.absolute().parent  # not resolved: in the Hub's cache a file is a link away from its folder
    return assemble(ModelFolder(home.parent if home.name == "unet" else home), weights)


def read_weights(file: Path) -> Weights:
    """Read a .safetensors file, or a pickle that holds nothing but tensors and plain values."""
    if file.suffix == ".safetensors":
        return Weights.of_safetensors(file)
    if file.suffix not in PICKLES:
        raise UserError(f"{file} is not a file of weights: their names end in .safetensors, {', '.join(PICKLES)}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with file.open("rb") as handle:
            start = handle.read(2)
        if not start.startswith(STARTS):
            raise UserError(
                f"{file} was not written by PyTorch (a Git LFS pointer, or a web page?): download the weights again"
            ) from None
        raise UserError(f"{file} holds more than tensors (its pickle could run code), so it was not opened") from None
    except Exception as error:  # a damaged file raises errors of many types
        raise UserError(f"{file} was not written by PyTorch, or is damaged ({type(error).__name__})") from None
    return Weights.of_tensors(str(file), state_dict_in(content, file))


def state_dict_in(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a loaded file: plain, in a trainer's wrapper, or under a prefix that all names share."""
    wrapped = [content.get(key) for key in WRAPPERS] if isinstance(content, Mapping) else []
    tensors = next(filter(None, map(named_tensors, [*wrapped, content])), {})
    if not tensors:
        raise UserError(f"{file} holds no weights")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def named_tensors(value: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping by name; nothing for any other value."""
    if not isinstance(value, Mapping):
        return {}
    return {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
