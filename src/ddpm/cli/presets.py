"""`ddpm presets`: the configurations that come with the package."""

from typing import Annotated

import typer

from ddpm.cli.options import complete_preset


def presets(
    name: Annotated[
        str | None, typer.Argument(help="print this preset as YAML with every field", autocompletion=complete_preset)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of a configuration")] = False,
) -> None:
    """List the presets, or print one with every field explained."""
    from ddpm.training.config import load_config, preset_about, preset_names
    from ddpm.training.fields import annotated_yaml, json_schema

    if schema:
        print(json_schema(), end="")
        return
    if name is not None:
        print(annotated_yaml(load_config(name)), end="")
        return
    about = {preset: preset_about(preset) for preset in preset_names()}
    width = max(map(len, about))
    groups = {"On a CPU": False, "On a GPU": True}
    for title, on_gpu in groups.items():
        print(f"{title}:")
        for preset, text in about.items():
            if ("GPU" in text) == on_gpu:
                print(f"  {preset:<{width}}  {text}")
