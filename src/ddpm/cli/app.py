"""`ddpm app`: a web page to sample from a model, restore and edit images, and look at runs."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import PATH, ModelName
from ddpm.common.errors import require


def app(
    model: ModelName,
    runs: Annotated[Path, typer.Option(**PATH, help="folder of run directories to show")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 7860,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 accepts other machines")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
) -> None:
    """Serve a web page for a model."""
    print("starting …", flush=True)  # the imports alone take seconds
    from ddpm.app import without_proxies
    from ddpm.model import load

    with without_proxies():
        require("gradio", "app")
        from ddpm.app.page import build, check_port, launch

    check_port(host, port)  # before the model loads, which takes seconds
    launch(build(load(model), model, runs), host, port, browser=browser)
