"""`ddpm plot KIND`: the figures of a paper, each from one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddpm.cli.options import PATH, Guidance, Labels, Overwrite, Sampler, Seed, Steps
from ddpm.common.errors import UserError
from ddpm.common.names import DEFAULT_SAMPLER

if TYPE_CHECKING:
    from ddpm.model import Model


plot = typer.Typer(name="plot", help="Draw a figure: PDF, SVG or PNG.", no_args_is_help=True, rich_markup_mode=None)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="'digits', a run, a Diffusers folder, or a Hub id")]
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="one or more, as NAME or TITLE=NAME")]
Source = Annotated[str, typer.Option("--data", help="a name, hf:user/set, or a path; NAME:test is a split")]
Rows = Annotated[int, typer.Option(min=1, help="rows of images")]
Columns = Annotated[int, typer.Option(min=1, help="columns of images")]
Out = Annotated[Path | None, typer.Option(**PATH, help="NAME.pdf, NAME.svg or NAME.png; default: KIND.pdf")]


@plot.command()
def schedule(
    names: Annotated[str, typer.Option(help="linear, quadratic, cosine, sigmoid, constant")] = "linear,cosine,sigmoid",
    timesteps: Annotated[int, typer.Option(min=2, help="T")] = 1000,
    zero_terminal_snr: Annotated[bool, typer.Option(help="rescaled to end without any signal")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """β, ᾱ and SNR over t."""
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "schedule", overwrite)
    drawn = figures.schedules(_words(names), timesteps, zero_terminal_snr=zero_terminal_snr)
    print(save_figure(drawn, target, overwrite=overwrite))


@plot.command()
def loss(
    models: Models,
    data: Source,
    num: Annotated[int, typer.Option(min=1, help="images the loss is averaged over")] = 64,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The loss over the timestep."""
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "loss", overwrite)
    print(save_figure(figures.loss_by_timestep(_titled(models), data, num=num, seed=seed), target, overwrite=overwrite))


@plot.command()
def classes(
    model: ModelName,
    columns: Columns = 10,
    sampler: Sampler = DEFAULT_SAMPLER,
    steps: Steps = 20,
    guidance: Guidance = 1.0,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """A row of samples for each class."""
    from ddpm.model import load
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "classes", overwrite)
    drawn = figures.samples_by_class(
        load(model), columns=columns, sampler=sampler, steps=steps, guidance=guidance, seed=seed
    )
    print(save_figure(drawn, target, overwrite=overwrite))


@plot.command()
def interpolation(
    model: ModelName,
    rows: Rows = 4,
    columns: Columns = 9,
    steps: Steps = 50,
    labels: Labels = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """From one sample to another, between their x_T."""
    from ddpm.model import load
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "interpolation", overwrite)
    drawn = figures.interpolation(load(model), rows=rows, columns=columns, steps=steps, labels=labels, seed=seed)
    print(save_figure(drawn, target, overwrite=overwrite))


@plot.command()
def neighbours(
    model: ModelName,
    data: Source,
    num: Annotated[int, typer.Option(min=1, help="samples, a row each")] = 6,
    neighbours: Annotated[int, typer.Option(min=1, help="training images beside each")] = 6,
    sampler: Sampler = DEFAULT_SAMPLER,
    steps: Steps = 20,
    labels: Labels = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Samples beside the training images nearest to them."""
    from ddpm.model import load
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "neighbours", overwrite)
    options = {"sampler": sampler, "steps": steps, "labels": labels, "seed": seed}
    drawn = figures.nearest_neighbours(load(model), data, num=num, neighbours=neighbours, **options)
    print(save_figure(drawn, target, overwrite=overwrite))


@plot.command()
def quality(
    points: Annotated[Path, typer.Argument(**PATH, help="the JSON of `ddpm evaluate --sweep`")],
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Quality against network evaluations, a curve a sampler."""
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "quality", overwrite)
    print(save_figure(figures.quality(points), target, overwrite=overwrite))


@plot.command()
def progress(
    run: Annotated[Path, typer.Argument(**PATH, help="a run directory")],
    rows: Rows = 6,
    columns: Columns = 8,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The same seeds as training went on."""
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "progress", overwrite)
    print(save_figure(figures.training_progress(run, rows=rows, columns=columns), target, overwrite=overwrite))


@plot.command()
def compare(
    models: Models,
    columns: Columns = 8,
    sampler: Sampler = DEFAULT_SAMPLER,
    steps: Steps = 20,
    labels: Labels = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Several models at the same seeds."""
    from ddpm.plotting import plots as figures
    from ddpm.plotting.plots import save_figure

    target = _target(out, "compare", overwrite)
    options = {"sampler": sampler, "steps": steps, "labels": labels, "seed": seed}
    print(save_figure(figures.comparison(_titled(models), columns=columns, **options), target, overwrite=overwrite))


def _target(out: Path | None, kind: str, overwrite: bool) -> Path:
    """Where the figure will go, seen to be free before anything is computed."""
    from ddpm.plotting.plots import check_figure

    return check_figure(out or Path(f"{kind}.pdf"), overwrite=overwrite)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _titled(names: list[str]) -> dict[str, Model]:
    """Models by their title in the figure: TITLE=NAME, or the last part of NAME; a path that is there is all NAME."""
    from ddpm.model import load

    found: dict[str, Model] = {}
    for name in names:
        title, equals, place = name.partition("=")
        if not equals or Path(name).exists():
            title, place = "", name
        title = title or Path(place).name
        if title in found:
            raise UserError(f"two models would be called {title!r}: give titles, as TITLE=MODEL")
        found[title] = load(place)
    return found
