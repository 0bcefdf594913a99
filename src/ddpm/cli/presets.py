"""`ddpm presets`: the configurations that come with the package."""

from typing import Annotated

import typer

from ddpm.training.config import load_config, preset_about, preset_names


def presets(
    name: Annotated[str | None, typer.Argument(help="print this preset as YAML, every field resolved")] = None,
) -> None:
    """List the presets, or print one."""
    if name is not None:
        print(load_config(name).to_yaml(), end="")
        return
    width = max(map(len, preset_names()))
    for preset in preset_names():
        print(f"{preset:<{width}}  {preset_about(preset)}")
