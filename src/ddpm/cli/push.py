"""`ddpm push`: put a model folder, with its card and a picture of its samples, on the Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ddpm.interop import hub
from ddpm.interop.card import add_samples
from ddpm.model import load
from ddpm.viewing.pictures import save_grid


def push(
    model: Annotated[str, typer.Argument(help="a run directory or a model folder")],
    name: Annotated[str, typer.Argument(help="user/name on the Hub; made where there is none")],
    private: Annotated[bool, typer.Option(help="make a new repository private")] = False,
    num: Annotated[int, typer.Option(help="images in the card's picture; 0 for none")] = 16,
    seed: Annotated[int, typer.Option(help="of the picture")] = 0,
) -> None:
    """Upload a model to the Hub."""
    hub.check_id(name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        trained = load(model)
        trained.save(folder)  # what a model folder holds, and nothing else that lies beside it
        if num:
            save_grid(trained.sample(num, seed=seed), folder / "samples.png")
            add_samples(folder / "README.md", f"{num} samples, seed {seed}, 20 steps of DPM-Solver++")
        print(hub.upload(folder, name, private=private))
