"""The model card: README.md of a model folder, from what is known of the model."""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from ddpm.common.files import atomic_write
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.interop.folder import read_json, write_json
from ddpm.networks import UNet

LAST = "## Limits"
HERE = "THIS_FOLDER"


def model_card(network: UNet, diffusion: GaussianDiffusion, extra: dict[str, Any], *, diffusers: bool) -> str:
    """Markdown with the Hub's front matter.

    Of `extra["provenance"]` it shows `data`, `config` and `metrics`, each a dict of JSON values, `limits`, a text, and
    every plain value (time, steps, machine, ...) under "Training"; what is not there is left out.
    """
    provenance = dict(extra.get("provenance") or {})
    limits = provenance.pop("limits", None) or _limits(network)
    config = provenance.get("config") or {}
    source = {"source": config["data"]["source"]} if "source" in config.get("data", {}) else {}
    sections = [
        _front_matter(diffusers),
        f"# A DDPM for {_size(network)} images\n\n{_summary(network, diffusion, extra)}",
        _usage(network, diffusers),
        _section("Data", _table({**source, **(provenance.get("data") or {})})),
        _section("Training", _table({key: value for key, value in provenance.items() if not isinstance(value, dict)})),
        _section("Metrics", _table(provenance.get("metrics") or {})),
        _section("Configuration", _configuration(config)),
        f"{LAST}\n\n{limits}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def add_samples(folder: Path, picture: Path, caption: str) -> None:
    """Put a picture of samples into a model folder and show it in its card."""
    shutil.copyfile(picture, folder / "samples.png")
    _put_section(folder, "Samples", f"![samples](samples.png)\n\n{caption}")


def add_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Add figures to a model folder: to its ddpm.json, where they travel on, and to its card."""
    extra = read_json(folder / "ddpm.json")
    provenance = extra.get("provenance") or {}
    merged = {**(provenance.get("metrics") or {}), **metrics}
    write_json(folder / "ddpm.json", {**extra, "provenance": {**provenance, "metrics": merged}})
    _put_section(folder, "Metrics", _table(merged))


def keep_card(source: Path, folder: Path) -> None:
    """Give a copy of a model folder the card of the original, which its owner may have written on."""
    for name in ("README.md", "samples.png"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def address_card(folder: Path, name: str) -> None:
    """Let the card's examples load the model by its name on the Hub."""
    card = folder / "README.md"
    atomic_write(card, card.read_text(encoding="utf-8").replace(HERE, name))


def _put_section(folder: Path, title: str, body: str) -> None:
    """Replace a section of a card, or put it before the limits; at the end where another hand left those out."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").rstrip() + "\n\n"
    section = re.compile(rf"^## {title}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if section.search(text) is None:
        before, limits, after = text.partition(f"\n{LAST}")
        text = f"{before}\n## {title}\n\n{limits.lstrip()}{after}"
    atomic_write(card, section.sub(lambda _: f"## {title}\n\n{body}\n\n", text, count=1).rstrip() + "\n")


def _front_matter(diffusers: bool) -> str:
    words = {
        "library_name": "diffusers" if diffusers else "ddpm",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["ddpm", "diffusion", "pytorch"],
    }
    return f"---\n{yaml.safe_dump(words, sort_keys=False)}---"


def _size(network: UNet) -> str:
    height, width = network.image_size
    colours = {1: "grey ", 3: "colour "}.get(network.in_channels, f"{network.in_channels}-channel ")
    return f"{colours}{height}×{width}"


def _summary(network: UNet, diffusion: GaussianDiffusion, extra: dict[str, Any]) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    names = extra.get("class_names")
    classes = ""
    if names:
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        guided = " Classes were dropped in training, so guidance works." if extra.get("null_label") is not None else ""
        classes = f" It draws one of {len(names)} classes ({shown}).{guided}"
    predicts = {"epsilon": "the noise ε", "x_0": "the clean image x_0", "v": "v"}[diffusion.prediction]
    return (
        f"A denoising diffusion model (Ho et al. 2020) with {parameters:,} parameters that predicts {predicts} over "
        f"T = {diffusion.schedule.timesteps} steps; reverse variance {diffusion.variance}.{classes}"
    )


def _usage(network: UNet, diffusers: bool) -> str:
    lines = ["## Use", "", "```python", "import ddpm", "", f'model = ddpm.load("{HERE}")']
    lines += ["images = model.sample(16, seed=0)  # float32, N,C,H,W, in [-1, 1]"]
    lines += ['ddpm.save_grid(images, "samples.png")', "```", ""]
    if not diffusers:
        lines.append("Diffusers' `UNet2DModel` has no words for this network; only ddpm opens it.")
    elif network.num_classes is None:
        lines.append(f'In Diffusers: `DDPMPipeline.from_pretrained("{HERE}")`.')
    else:
        lines.append(
            f'In Diffusers: `UNet2DModel.from_pretrained("{HERE}", subfolder="unet")`, called with `class_labels` '
            "(`DDPMPipeline` passes none)."
        )
    return "\n".join(lines)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items())
    return f"| | |\n|---|---|\n{rows}" if values else ""


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _configuration(config: dict[str, Any]) -> str:
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    return f"```yaml\n{text}```" if config else ""


def _limits(network: UNet) -> str:
    return (
        f"It draws {_size(network)} images like those it was trained on, with their gaps and their bias, and nothing "
        "else. A small training set can be memorised: compare samples with their nearest training images before "
        "publishing them."
    )
