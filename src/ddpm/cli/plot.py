"""`ddpm plot KIND`: the figures of a paper, each from one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ddpm.cli.options import PATH, ModelName, Overwrite, Seed, complete_model, sampling_flags
from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.common.names import ScheduleName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ddpm.model import Model

plot = typer.Typer(name="plot", help="Plot a figure: PDF, SVG or PNG.", rich_markup_mode=None)

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="one or more, as NAME or TITLE=NAME", autocompletion=complete_model),
]
Source = Annotated[str, typer.Option("--data", help="a name, hf:user/set, or a path; NAME:test is a split")]
Rows = Annotated[int, typer.Option(min=1, help="rows of images")]
Columns = Annotated[int, typer.Option(min=1, help="columns of images")]
Out = Annotated[Path | None, typer.Option(**PATH, help="NAME.pdf, NAME.svg or NAME.png; default: KIND.pdf")]


@plot.command()
def schedule(
    names: Annotated[str, typer.Option(help=", ".join(get_args(ScheduleName)))] = "linear,cosine,sigmoid",
    timesteps: Annotated[int, typer.Option(min=2, help="T")] = 1000,
    zero_terminal_snr: Annotated[bool, typer.Option(help="rescale to zero terminal SNR")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """β, ᾱ and SNR over t."""
    target = _target(out, "schedule", overwrite)
    from ddpm.plotting.plots import schedules

    chosen = [word.strip() for word in names.split(",") if word.strip()]
    _save(schedules(chosen, timesteps, zero_terminal_snr=zero_terminal_snr), target, overwrite)


@plot.command()
def loss(
    models: Models,
    data: Source,
    num: Annotated[int, typer.Option(min=1, help="images to average the loss over")] = 64,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The loss over the timestep."""
    target = _target(out, "loss", overwrite)
    from ddpm.plotting.plots import loss_by_timestep

    _save(loss_by_timestep(_titled(models), data, num=num, seed=seed), target, overwrite)


@plot.command()
@sampling_flags(without=["labels"])
def classes(
    model: ModelName,
    sampling: dict[str, Any],
    columns: Columns = 10,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """A row of samples per class."""
    target = _target(out, "classes", overwrite)
    from ddpm.model import load
    from ddpm.plotting.plots import samples_by_class

    _save(samples_by_class(load(model), columns=columns, **sampling), target, overwrite)


@plot.command()
@sampling_flags()
def neighbours(
    model: ModelName,
    data: Source,
    sampling: dict[str, Any],
    num: Annotated[int, typer.Option(min=1, help="number of samples, one row each")] = 6,
    neighbours: Annotated[int, typer.Option(min=1, help="training images per sample")] = 6,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Samples next to the most similar training images."""
    target = _target(out, "neighbours", overwrite)
    from ddpm.model import load
    from ddpm.plotting.plots import nearest_neighbours

    _save(nearest_neighbours(load(model), data, num=num, neighbours=neighbours, **sampling), target, overwrite)


@plot.command()
def quality(
    points: Annotated[Path, typer.Argument(**PATH, help="the JSON of `ddpm evaluate --sweep`")],
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Quality against network evaluations, one curve per sampler."""
    target = _target(out, "quality", overwrite)
    from ddpm.plotting import plots

    _save(plots.quality(points), target, overwrite)


@plot.command()
def progress(
    run: Annotated[Path, typer.Argument(**PATH, help="a run directory")],
    rows: Rows = 6,
    columns: Columns = 8,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Previews of the same seeds over training."""
    target = _target(out, "progress", overwrite)
    from ddpm.plotting.plots import training_progress

    _save(training_progress(run, rows=rows, columns=columns), target, overwrite)


@plot.command()
@sampling_flags()
def compare(
    models: Models,
    sampling: dict[str, Any],
    columns: Columns = 8,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Several models at the same seeds."""
    target = _target(out, "compare", overwrite)
    from ddpm.plotting.plots import comparison

    _save(comparison(_titled(models), columns=columns, **sampling), target, overwrite)


def _target(out: Path | None, kind: str, overwrite: bool) -> Path:
    """Return the file to write, checked before anything is computed."""
    from ddpm.plotting.plots import check_figure

    return check_figure(out or Path(f"{kind}.pdf"), overwrite=overwrite)


def _save(drawn: Figure, target: Path, overwrite: bool) -> None:
    from ddpm.plotting.plots import save_figure

    print(save_figure(drawn, target, overwrite=overwrite))


def _titled(names: list[str]) -> dict[str, Model]:
    """Load the models of TITLE=NAME or NAME words; the default title is the last part of NAME.

    A word that is an existing path is a NAME, even if it holds an equals sign.
    """
    from ddpm.model import load

    found: dict[str, Model] = {}
    for name in names:
        title, equals, place = name.partition("=")
        if not equals or user_path(name).exists():
            title, place = "", name
        title = title or Path(place).name
        if title in found:
            raise UserError(f"two models have the title {title!r}: give titles, as TITLE=MODEL")
        found[title] = load(place)
    return found
