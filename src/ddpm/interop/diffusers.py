"""Diffusers' pipeline folder is the model format: written and read here, without Diffusers.

model_index.json, unet/ (config.json, safetensors), scheduler/scheduler_config.json, and ddpm.json for everything that
Diffusers cannot express. Older layouts can be read too: configuration and weights at the root, attention named
query/key/value/proj_attn, a DDIM or other scheduler, half precision, variants, shards, training checkpoints.
"""

import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import atomic_write, is_model, is_run, user_path
from ddpm.common.names import SamplerName
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.interop.card import model_card
from ddpm.interop.diffusers_config import OURS, UNET2D, obstacle, to_our_config, to_process, to_scheduler, to_unet2d
from ddpm.interop.layouts import AVERAGED, is_checkpoint, newest_checkpoint, training_folder
from ddpm.interop.storage import (
    WEIGHTS,
    ModelFolder,
    Weights,
    checked,
    replace_folder,
    safetensors_in,
    save_tensors,
    write_json,
)
from ddpm.networks import UNet
from ddpm.networks.inference import first_non_finite

DIFFUSERS_VERSION = "0.30.0"  # the field names are those of this version and later
COMPONENTS = {"unet", "scheduler"}  # of a pipeline whose network works on pixels
LASTING = (
    "ddpm",
    "fine-tuned from",
    "distilled from",
    "guidance",
    "config",
    "data",
    "engine",
    "limits",
)  # provenance that every step of a run has
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")


class Student(BaseModel, extra="forbid", frozen=True):
    """What a distilled network was made for: this many steps of this sampler, with the sampler's own spacing."""

    steps: int = Field(ge=1)
    sampler: SamplerName = "ddim"


@dataclass(frozen=True)
class LoadedParts:
    """The content of a model folder; `extra` is its ddpm.json, empty for a folder that Diffusers wrote."""

    network: UNet
    diffusion: GaussianDiffusion
    image_shape: tuple[int, int, int]
    extra: dict[str, Any]
    student: Student | None = None


class Extra(BaseModel, extra="allow"):
    """The fields of ddpm.json that must fit the network; other fields are kept."""

    class_names: list[str] | None = None
    null_label: int | None = Field(None, ge=0)
    student: Student | None = None
    provenance: dict[str, Any] | None = None


def save_folder(
    folder: str | Path,
    network: UNet,
    diffusion: GaussianDiffusion,
    *,
    image_shape: tuple[int, int, int],
    extra: dict[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a pipeline folder, atomically, in place of a model folder that is there.

    Args:
        image_shape: (C, H, W).
        extra: class names, null label, provenance, as JSON values; becomes ddpm.json and the model card.
        dtype: number format of the stored weights, e.g. torch.float16; None keeps the network's.

    A network that `UNet2DModel` cannot express is saved in the same layout under our own class name, with a warning.
    """
    if tuple(image_shape) != (network.in_channels, *network.image_size):
        raise ValueError(
            f"the network is for images {(network.in_channels, *network.image_size)}, not {tuple(image_shape)}"
        )
    reason = obstacle(network)
    if reason:
        warnings.warn(f"{folder}: Diffusers cannot open this network ({reason}); ddpm can", stacklevel=2)
    stamp = {"_diffusers_version": DIFFUSERS_VERSION}

    def write(beside: Path) -> None:
        config, scheduler = to_unet2d(network), to_scheduler(diffusion)
        library = ["ddpm.networks", OURS] if reason else ["diffusers", UNET2D]
        index = {"_class_name": "DDPMPipeline", **stamp, "scheduler": ["diffusers", "DDPMScheduler"], "unet": library}
        write_json(beside / "model_index.json", index)
        write_json(beside / "unet" / "config.json", {**config, **stamp})
        write_json(beside / "scheduler" / "scheduler_config.json", {**scheduler, **stamp})
        write_json(beside / "ddpm.json", extra)
        card = model_card(network, diffusion, extra, diffusers=not reason)
        atomic_write(beside / "README.md", card)
        tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
        try:
            save_tensors(beside / "unet" / f"{WEIGHTS}.safetensors", tensors, metadata={"format": "pt"})
        except SafetensorError as error:
            raise RunStopped(f"the weights could not be written to {folder}: {error}") from error

    replace_folder(user_path(folder), write)


def load_folder(folder: str | Path) -> LoadedParts:
    """Open a pipeline folder of any age; only JSON and safetensors are read, and nothing outside the folder.

    Raises UserError if something is missing, does not fit, is not finite or cannot be expressed; one line says what.
    """
    folder = user_path(folder)
    if is_checkpoint(folder):
        return load_checkpoint(folder)
    files = ModelFolder(folder)
    prefix = unet_prefix(files)
    if prefix == "unet_ema/":
        print(f"{folder}: the averaged weights (unet_ema) are used", file=sys.stderr)
    return assemble(files, safetensors_in(files, prefix))


def load_checkpoint(folder: Path) -> LoadedParts:
    """Open RUN/checkpoints/NNNNNN: its averaged weights, in the network that RUN/model describes.

    Raises UserError if the run has no model folder, or if the weights do not fit it.
    """
    run = folder.absolute().parent.parent
    if not is_model(run / "model"):
        raise UserError(f"{run} has no model folder, which describes the network: ddpm train --resume {run} writes it")
    weights = Weights.of_safetensors(folder / AVERAGED)
    weights.shapes.pop("ema_updates", None)  # a counter, not a weight
    parts = assemble(ModelFolder(run / "model"), weights)
    # figures and times are those of another step
    provenance = {key: value for key, value in (parts.extra.get("provenance") or {}).items() if key in LASTING}
    steps = {"steps": int(folder.name)} if folder.name.isdecimal() else {}
    return replace(parts, extra={**parts.extra, "provenance": {**provenance, **steps}})


def unet_prefix(files: ModelFolder) -> str:
    """Return where the network is: "unet/", "unet_ema/" (averaged weights, preferred), or "" in old folders."""
    if files.find("unet_ema/config.json"):
        return "unet_ema/"
    if files.find("unet/config.json"):
        return "unet/"
    if files.find("config.json"):
        return ""
    checkpoint = newest_checkpoint(files.path)
    hint = f"; to open its last checkpoint give {checkpoint}" if checkpoint else ""
    if is_run(files.path.parent):
        hint = f"; to open the model of its run give {files.path.parent}"
    raise UserError(f"{files.path} is no model folder: it has neither unet/config.json nor config.json{hint}")


def assemble(files: ModelFolder, weights: Weights) -> LoadedParts:
    """Build the network and the process that a folder's configuration describes, with these weights."""
    prefix = unet_prefix(files)
    _check_components(files)
    config = to_our_config(files.json(f"{prefix}config.json") or {}, f"{files.path}/{prefix}config.json")
    channels, out_channels = config.in_channels, config.out_channels
    if out_channels not in (channels, 2 * channels):
        raise UserError(f"{files.path}: a network with {channels} channels in and {out_channels} out is no DDPM")
    diffusion = to_process(_scheduler(files), out_channels == 2 * channels, f"{files.path}: scheduler_config.json")

    with torch.device("meta"):  # no memory is used until the file is known to hold these tensors
        network = UNet(config.network, config.image_size, channels, out_channels, config.num_classes)
    fill(network, weights)
    extra = files.json("ddpm.json") or {}
    known = _checked_extra(extra, config.num_classes, f"{files.path}/ddpm.json")
    if known.student and known.student.steps > len(diffusion.schedule):
        raise UserError(
            f"{files.path}/ddpm.json: a student of {known.student.steps} steps needs as many timesteps, and the "
            f"schedule has {len(diffusion.schedule)}"
        )
    return LoadedParts(network.eval(), diffusion, (channels, *config.image_size), extra, known.student)


def _scheduler(files: ModelFolder) -> dict[str, Any]:
    """Return the scheduler's configuration; a checkpoint of Diffusers' training scripts has it in the folder above."""
    scheduler = files.json("scheduler/scheduler_config.json", "scheduler_config.json")
    above = training_folder(files.path)
    if scheduler is None and above is not None:
        scheduler = ModelFolder(above).json("scheduler/scheduler_config.json")
    if scheduler is None:
        home = (above or files.path) / "scheduler"
        raise UserError(
            f"{files.path} has no scheduler/scheduler_config.json, which says what noise it was trained on: put the "
            f"training's own there, or write one with diffusers.DDPMScheduler(...).save_pretrained('{home}')"
        )
    return scheduler


def _check_components(files: ModelFolder) -> None:
    """Refuse latent diffusion: its network could be opened, but its samples are not images."""
    index = files.json("model_index.json") or {}
    there = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    if others := sorted(there - COMPONENTS):
        raise UserError(
            f"{files.path} is a {index.get('_class_name', 'pipeline')} with {', '.join(others)} "
            "(model_index.json), so its network does not sample pixels: open it with Diffusers"
        )


def _checked_extra(extra: dict[str, Any], rows: int | None, where: str) -> Extra:
    known = checked(Extra, extra, where)
    if known.class_names is not None:
        classes = len(known.class_names) + (known.null_label is not None)
        if classes != rows:
            raise UserError(
                f"{where} names {classes} classes (null class included), but the network has {rows or 'none'}"
            )
    if known.null_label is not None and known.null_label >= (rows or 0):
        raise UserError(f"{where}: null_label is {known.null_label}, but the network has {rows or 'no'} classes")
    return known


def fill(network: UNet, weights: Weights) -> None:
    """Give a network on the meta device its weights, in float32.

    Raises UserError if a name or a shape does not fit, or if a number is not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    sources: dict[str, str] = {}
    for source in weights.shapes:
        name = OLD_NAME.sub(lambda match: OLD_NAMES[match[0]], source)
        if name in sources:
            raise UserError(f"{weights.where} holds both {source} and {sources[name]}")
        sources[name] = source
    for what, names in (("lacks", expected.keys() - sources), ("should not hold", sources.keys() - expected)):
        if names:
            first, more = min(names), f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{weights.where} does not fit its configuration: it {what} {first}{more}")
    for name, shape in expected.items():
        found = weights.shapes[sources[name]]
        if _without_pixels(found, len(shape)) != shape:
            raise UserError(f"{weights.where} does not fit its configuration: {name} is {found}, not {shape}")
    state = {  # copies, so that they do not depend on the file
        name: weights.read(sources[name]).to(torch.float32, copy=True).reshape(shape)
        for name, shape in expected.items()
    }
    if broken := first_non_finite(state):
        raise UserError(f"{weights.where} holds numbers that are not finite, first in {broken}: its training failed")
    network.load_state_dict(state, assign=True)


def _without_pixels(shape: tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """Return the shape of a 1×1 convolution as that of a linear layer (attention in some old files)."""
    return shape[:dimensions] if all(side == 1 for side in shape[dimensions:]) else shape
