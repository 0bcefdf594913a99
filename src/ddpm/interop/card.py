"""The model card: README.md of a model folder, from what is known of the model."""

from typing import Any

import yaml

from ddpm.networks import UNet
from ddpm.process.gaussian import GaussianProcess


def model_card(network: UNet, process: GaussianProcess, extra: dict[str, Any], *, diffusers: bool) -> str:
    """Markdown with the Hub's front matter.

    Of `extra["provenance"]` it shows `data`, `training` (time, machine, images, command), `metrics` and `config`, each
    a dict of JSON values, and `limits`, a text; what is not there is left out.
    """
    provenance = extra.get("provenance") or {}
    sections = [
        _front_matter(diffusers),
        f"# A DDPM for {_size(network)} images\n\n{_summary(network, process, extra)}",
        _usage(network, diffusers),
        _table("Data", provenance.get("data")),
        _table("Training", provenance.get("training")),
        _table("Metrics", provenance.get("metrics")),
        _configuration(provenance.get("config")),
        "## Limits\n\n" + (provenance.get("limits") or _limits(network)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


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


def _table(title: str, values: dict[str, Any] | None) -> str:
    if not values:
        return ""
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _configuration(config: dict[str, Any] | None) -> str:
    if not config:
        return ""
    return f"## Configuration\n\n```yaml\n{yaml.safe_dump(config, sort_keys=False, default_flow_style=None)}```"


def _limits(network: UNet) -> str:
    return (
        f"It draws {_size(network)} images like those it was trained on, with their gaps and their bias, and nothing "
        "else. A small training set can be memorised: compare samples with their nearest training images before "
        "publishing them."
    )
