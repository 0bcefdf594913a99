"""The model card: README.md of a model folder, from what is known of the model.

The front matter is huggingface_hub's, so that the Hub lists the metrics beside the card. Text that the owner of a model
has written stays: only the section concerned is replaced.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, SpaceCardData

from ddpm.common.files import atomic_write
from ddpm.common.names import VERSION
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.interop.storage import read_json, write_json
from ddpm.networks import UNet

LAST = "Limits"
HEADING = "## "
HERE = "THIS_FOLDER"
TASK = "unconditional-image-generation"

SPACE_APP = """\
import sys

from ddpm.cli import run

sys.exit(run(["app", "{name}", "--host", "0.0.0.0", "--port", "7860"]))
"""


def model_card(network: UNet, diffusion: GaussianDiffusion, extra: dict[str, Any], *, diffusers: bool) -> str:
    """Return the card as Markdown with the Hub's front matter.

    Args:
        extra: the content of ddpm.json. The card shows `data`, `config` and `metrics` of its `provenance`, each a dict
            of JSON values, `limits`, a text, and every plain value (time, steps, machine, ...) under "Training".
            Missing ones are left out.
        diffusers: whether Diffusers can open the network.
    """
    provenance = dict(extra.get("provenance") or {})
    limits = provenance.pop("limits", None) or _limits(network)
    config = provenance.get("config") or {}
    source = {"source": config["data"]["source"]} if "source" in config.get("data", {}) else {}
    metrics = provenance.get("metrics") or {}
    title = f"A DDPM for {_size(network)} images"
    sections = [
        f"# {title}\n\n{_summary(network, diffusion, extra)}",
        _usage(network, diffusers, extra.get("student")),
        _section("Data", _table({**source, **(provenance.get("data") or {})})),
        _section("Training", _table({key: value for key, value in provenance.items() if not isinstance(value, dict)})),
        _section("Metrics", _table(metrics)),
        _section("Configuration", _configuration(config)),
        _section(LAST, limits),
    ]
    data = ModelCardData(
        library_name="diffusers" if diffusers else "ddpm", pipeline_tag=TASK, tags=["ddpm", "diffusion", "pytorch"]
    )
    _set_results(data, metrics, title, source.get("source", "unknown"))
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def add_samples(folder: Path, picture: Path, caption: str) -> None:
    """Put an image of samples into a model folder and show it in the card."""
    shutil.copyfile(picture, folder / "samples.png")
    card = _read(folder)
    _put_section(card, "Samples", f"![samples](samples.png)\n\n{caption}")
    _write(folder, card)


def add_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Add metrics to a model folder: to its ddpm.json, to the card's table and to the Hub's list of results."""
    extra = read_json(folder / "ddpm.json")
    provenance = extra.get("provenance") or {}
    merged = {**(provenance.get("metrics") or {}), **metrics}
    write_json(folder / "ddpm.json", {**extra, "provenance": {**provenance, "metrics": merged}})
    card = _read(folder)
    _put_section(card, "Metrics", _table(merged))
    source = ((provenance.get("config") or {}).get("data") or {}).get("source", "unknown")
    assert isinstance(card.data, ModelCardData)
    _set_results(card.data, merged, _title(card), source)
    _write(folder, card)


def keep_card(source: Path, folder: Path) -> None:
    """Give a copy of a model folder the card of the original, which its owner may have edited."""
    for name in ("README.md", "samples.png"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def address_card(folder: Path, name: str) -> None:
    """Let the card's examples load the model by its name on the Hub."""
    card = folder / "README.md"
    atomic_write(card, card.read_text(encoding="utf-8").replace(HERE, name))


def write_space(folder: Path, name: str) -> None:
    """Write the files of a Space that runs `ddpm app` for the Hub's model `name`: card, program, requirements."""
    data = SpaceCardData(
        title=name.partition("/")[2],
        emoji="🎲",
        sdk="gradio",
        app_file="app.py",
        models=[name],
        tags=["ddpm", "diffusion"],
        python_version="3.12",  # the Hub's default is older than this package allows
    )
    text = f"Sample from [{name}](https://huggingface.co/{name}), restore and edit images with it, by `ddpm app`."
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}\n", encoding="utf-8")
    (folder / "app.py").write_text(SPACE_APP.format(name=name), encoding="utf-8")
    (folder / "requirements.txt").write_text(f"ddpm-kit[app]=={VERSION}\n", encoding="utf-8")


def _read(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True)


def _write(folder: Path, card: ModelCard) -> None:
    atomic_write(folder / "README.md", card.content)


def _title(card: ModelCard) -> str:
    """Return the first heading: the name under which the Hub lists results."""
    return next((line[2:] for line in card.text.splitlines() if line.startswith("# ")), "A DDPM")


def _put_section(card: ModelCard, title: str, body: str) -> None:
    """Replace a section, or insert it before the limits; at the end if the owner removed those."""
    first, *sections = ("\n" + card.text.rstrip() + "\n").split(f"\n{HEADING}")
    titles = [section.partition("\n")[0].strip() for section in sections]
    section = f"{title}\n\n{body}\n"
    if title in titles:
        sections[titles.index(title)] = section
    else:
        sections.insert(titles.index(LAST) if LAST in titles else len(sections), section)
    card.text = f"\n{HEADING}".join([first, *sections])[1:]


def _set_results(data: ModelCardData, metrics: dict[str, Any], name: str, source: str) -> None:
    """List the metrics in the front matter, beside results that are not ours."""
    ours = [
        EvalResult(
            task_type=TASK,
            dataset_type=source,
            dataset_name=source,
            metric_type=title.partition(":")[0].strip().lower(),
            metric_name=title,
            metric_value=value,
        )
        for title, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    known: list[EvalResult] = data.eval_results or []
    others = [result for result in known if result.metric_name not in metrics]
    if ours or others:
        data.model_name = data.model_name or name
        data.eval_results = [*others, *ours]


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
        classes = f" It samples one of {len(names)} classes ({shown}).{guided}"
    if student := extra.get("student"):
        classes += f" It was distilled to sample in {student['steps']} steps of {student['sampler']}."
    predicts = {"epsilon": "the noise ε", "x_0": "the clean image x_0", "v": "v"}[diffusion.prediction]
    return (
        f"A denoising diffusion model (Ho et al. 2020) with {parameters:,} parameters that predicts {predicts} over "
        f"T = {diffusion.schedule.timesteps} steps; reverse variance {diffusion.variance}.{classes}"
    )


def _usage(network: UNet, diffusers: bool, student: dict[str, Any] | None) -> str:
    lines = ["## Use", "", "```python", "import ddpm", "", f'model = ddpm.load("{HERE}")']
    lines += ["images = model.sample(16, seed=0)  # float32, N,C,H,W, in [-1, 1]"]
    lines += ['ddpm.save_grid(images, "samples.png")', "```", ""]
    if not diffusers:
        lines.append("Diffusers' `UNet2DModel` cannot express this network; only ddpm opens it.")
    elif student:
        lines.append(
            f'In Diffusers: `UNet2DModel.from_pretrained("{HERE}", subfolder="unet")` with {student["steps"]} steps of '
            '`DDIMScheduler`, `timestep_spacing="trailing"`; many steps of `DDPMPipeline` are not what it was made for.'
        )
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
        f"It samples {_size(network)} images like those it was trained on, with their gaps and their bias, and nothing "
        "else. A small training set can be memorised: compare samples with their nearest training images before "
        "publishing them."
    )
