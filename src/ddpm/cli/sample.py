"""`ddpm sample`: sample images from a trained model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm.cli.options import PATH, Metadata, ModelName, Overwrite, origin, sampling_flags, step_bar


@sampling_flags()
def sample(
    model: ModelName,
    num: Annotated[int, typer.Option(help="number of images")] = 16,
    *,
    sampling: dict[str, Any],
    columns: Annotated[int | None, typer.Option(min=1, help="columns of a grid")] = None,
    out: Annotated[Path, typer.Option(**PATH, help="NAME.png: a grid; NAME.npz: arr_0; else a folder of PNGs")] = Path(
        "samples.png"
    ),
    overwrite: Overwrite = False,
    metadata: Metadata = True,
) -> None:
    """Sample images."""
    from ddpm.common.pixels import made_by
    from ddpm.generate import generate
    from ddpm.model import SamplingOptions, load

    loaded = load(model)
    options = SamplingOptions.of(**sampling).resolved(loaded)
    made = origin(metadata, loaded, options=options.as_dict(), images=num)
    with step_bar(num) as callback, made_by(made):
        generate(loaded, out, options, num=num, overwrite=overwrite, columns=columns, callback=callback)
    print(out)
