"""`ddpm export`: write a model for other runtimes, as ONNX or as a web page without a server."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm.cli.options import PATH, ModelName, Overwrite, sampling_flags


class Target(StrEnum):
    """What can be written."""

    onnx = "onnx"
    web = "web"


@sampling_flags(without=("labels", "guidance_interval", "guidance_rescale", "clip", "seed", "batch_size", "precision"))
def export(
    model: ModelName,
    to: Annotated[Target, typer.Option(help="onnx: model.onnx and model.json; web: a page that samples by itself")],
    out: Annotated[Path, typer.Option(**PATH, help="the folder to write")],
    *,
    sampling: dict[str, Any],
    overwrite: Overwrite = False,
) -> None:
    """Write a model for other runtimes: ONNX or a web page.

    The sampling options become its steps and its default guidance.
    """
    from ddpm.export.onnx_files import export_onnx
    from ddpm.export.web import export_web
    from ddpm.model import SamplingOptions, load

    write = {Target.onnx: export_onnx, Target.web: export_web}[to]
    difference = write(load(model, device="cpu"), out, SamplingOptions.of(**sampling), overwrite=overwrite)
    print(f"{out}: onnxruntime's output is within {difference:.1e} of the network's")
