"""The model card: README.md of a model folder, from what is known of the model."""

from pathlib import Path
from typing import Any

import yaml

from ddpm.networks import UNet
from ddpm.process.gaussian import GaussianProcess


def model_card(network: UNet, process: GaussianProcess, extra: dict[str, Any], *, diffusers: bool) -> str:
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
        f"# A DDPM for {_size(network)} images\n\n{_summary(network, process, extra)}",
        _usage(network, diffusers),
        _table("Data", {**source, **(provenance.get("data") or {})}),
        _table("Training", {key: value for key, value in provenance.items() if not isinstance(value, dict)}),
        _table("Metrics", provenance.get("metrics") or {}),
        _configuration(config),
        f"## Limits\n\n{limits}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def add_samples(card: Path, caption: str) -> None:
    """Show samples.png, which lies beside the card, before its first section."""
    text = card.read_text(encoding="utf-8")
    picture = f"![Samples](samples.png)\n\n{caption}\n\n"
    card.write_text(text.replace("## Use\n", f"{picture}## Use\n", 1), encoding="utf-8")


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


def _summary(network: UNet, process: GaussianProcess, extra: dict[str, Any]) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    names = extra.get("class_names")
    classes = ""
    if names:
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        guided = " Classes were dropped in training, so guidance works." if extra.get("null_label") is not None else ""
        classes = f" It draws one of {len(names)} classes ({shown}).{guided}"
    predicts = {"epsilon": "the noise ε", "x_0": "the clean image x_0", "v": "v"}[process.prediction]
    return (
        f"A denoising diffusion model (Ho et al. 2020) with {parameters:,} parameters that predicts {predicts} over "
        f"T = {process.schedule.timesteps} steps; reverse variance {process.variance}.{classes}"
    )


def _usage(network: UNet, diffusers: bool) -> str:
    lines = ["## Use", "", "```python", "import ddpm", "", 'model = ddpm.load("THIS_FOLDER")']
    lines += ["images = model.sample(16, seed=0)  # float32, N,C,H,W, in [-1, 1]"]
    lines += ['ddpm.save_grid(images, "samples.png")', "```", ""]
    if not diffusers:
        lines.append("Diffusers' `UNet2DModel` has no words for this network; only ddpm opens it.")
    elif network.num_classes is None:
        lines.append('In Diffusers: `DDPMPipeline.from_pretrained("THIS_FOLDER")`.')
    else:
        lines.append(
            'In Diffusers: `UNet2DModel.from_pretrained("THIS_FOLDER", subfolder="unet")`, called with `class_labels` '
            "(`DDPMPipeline` passes none)."
        )
    return "\n".join(lines)


def _table(title: str, values: dict[str, Any]) -> str:
    if not values:
        return ""
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _configuration(config: dict[str, Any]) -> str:
    if not config:
        return ""
    return f"## Configuration\n\n```yaml\n{yaml.safe_dump(config, sort_keys=False, default_flow_style=None)}```"


def _limits(network: UNet) -> str:
    return (
        f"It draws {_size(network)} images like those it was trained on, with their gaps and their bias, and nothing "
        "else. A small training set can be memorised: compare samples with their nearest training images before "
        "publishing them."
    )
