"""`ddpm app`: a web page to sample from a model, restore and edit images, and look at runs."""

from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import MODEL_HELP, PATH, complete_model
from ddpm.common.errors import require

HELP = f"{MODEL_HELP}; with several, the page begins with the first"
LOCAL = ("127.0.0.1", "::1", "localhost")


def app(
    model: Annotated[list[str], typer.Argument(metavar="MODEL...", help=HELP, autocompletion=complete_model)],
    runs: Annotated[Path, typer.Option(**PATH, help="folder of run directories to show")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 7860,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 accepts other machines")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
) -> None:
    """Serve a web page for a model.

    The page switches to other models: those given, the bundled ones, and those of runs.
    """
    print("starting …", flush=True)  # the imports alone take seconds
    from ddpm.app import without_proxies

    with without_proxies():
        require("gradio", "app")
        from ddpm.app.models import Models
        from ddpm.app.page import build, check_port, launch, look
    from ddpm.model import load

    check_port(host, port)  # before the model loads, which takes seconds
    own = host in LOCAL  # others on the network must not start trainings here
    models = Models(model, runs, lambda name: build(load(name), name, runs, models, trains=own), look())
    launch(models.page(model[0]), host, port, browser=browser, models=models)
