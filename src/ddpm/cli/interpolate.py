"""`ddpm interpolate`: images between two pictures, mixed in the space of x_t."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm.cli.options import PATH, Metadata, ModelName, Overwrite, origin, sampling_flags
from ddpm.common.errors import UserError
from ddpm.common.files import check_output


@sampling_flags(steps=100, sampler="ancestral", without=["labels", "spacing"])
def interpolate(
    model: ModelName,
    first: Annotated[Path, typer.Argument(**PATH | {"metavar": "A"}, help="a picture")],
    second: Annotated[Path, typer.Argument(**PATH | {"metavar": "B"}, help="another picture")],
    num: Annotated[int, typer.Option(help="number of images from λ = 0 (A) to λ = 1 (B)")] = 9,
    depths: Annotated[
        str, typer.Option(help="noise depths in [0,1], one row each (0.5: fig. 8 of Ho et al.; several: fig. 9)")
    ] = "0.5",
    labels: Annotated[str | None, typer.Option(help="class of all images; default: no class")] = None,
    *,
    sampling: dict[str, Any],
    out: Annotated[Path, typer.Option(**PATH, help="NAME.png: each row is A, the images between, and B")] = Path(
        "interpolation.png"
    ),
    overwrite: Overwrite = False,
    metadata: Metadata = True,
) -> None:
    """Interpolate from picture A to picture B. Depth D takes the last D × steps of a run."""
    import torch

    from ddpm.common.pixels import made_by, save_grid
    from ddpm.editing import Editor, coarse_to_fine
    from ddpm.editing.pictures import read_fitted
    from ddpm.model import load

    check_output(out, (".png",), overwrite=overwrite)
    if num < 2:
        raise UserError(f"--num must be at least 2 (λ = 0 and λ = 1), not {num}")
    prior = load(model)
    editor = Editor(prior, labels=labels, **sampling)
    a, b = (read_fitted(path, prior) for path in (first, second))
    weights = [i / (num - 1) for i in range(num)]
    rows = coarse_to_fine(editor, a[0], b[0], weights, parse_depths(depths))
    framed = torch.cat([a.expand(len(rows), 1, *a.shape[1:]), rows, b.expand(len(rows), 1, *b.shape[1:])], dim=1)
    with made_by(origin(metadata, prior, options=editor.options.as_dict())):
        print(save_grid(framed.flatten(0, 1), out, columns=num + 2, overwrite=overwrite))


def parse_depths(text: str) -> list[float]:
    """Read `0.5` or `0,0.25,0.5`."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--depths takes numbers from 0 to 1, such as 0.5 or 0.25,0.5, not {text!r}") from error
