"""`ddpm info`: how a file of this package was made."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import PATH


def info(file: Annotated[Path, typer.Argument(**PATH | {"metavar": "FILE"}, help="a .png, a .gif or an .npz")]) -> None:
    """Print how a file was made, and the command for it."""
    from ddpm.common.errors import UserError
    from ddpm.common.pixels import read_origin
    from ddpm.data.images import printable
    from ddpm.evaluation.opening import names_model
    from ddpm.model import BUNDLED, find_model

    if str(file) in BUNDLED or (file.exists() and names_model(file)):
        card = find_model(str(file)) / "README.md"
        if card.is_file():
            raise UserError(f"{file} is a model: {card} says what it is and how it was made")
    if not file.is_file():
        raise UserError(f"{file} is no file: give a .png, a .gif or an .npz of ddpm")
    origin = read_origin(file)
    command = origin.pop("command", None)
    for name, value in origin.items():
        fields = value if isinstance(value, dict) else {name: value}
        for key, one in fields.items():
            print(f"{printable(str(key))}: {json.dumps(one, ensure_ascii=True)}")
    if isinstance(command, str):
        print(f"command: {printable(command)}")
