"""`ddpm app`: a page to draw, restore, edit and explore with a model in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import MODEL_HELP, PATH
from ddpm.common.errors import require


def app(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    runs: Annotated[Path, typer.Option(**PATH, help="folder whose run directories the page shows")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="where to listen")] = 7860,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 lets other machines in")] = "127.0.0.1",
) -> None:
    """Open a page on a model."""
    from ddpm.model import load

    require("gradio", "app")
    from ddpm.app.page import build, check_port, launch

    check_port(host, port)  # before the model is loaded
    launch(build(load(model), model, runs), host, port)
