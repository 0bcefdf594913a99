"""`ddpm restore`: undo noise, missing pixels, low resolution, blur or lost colour with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.cli.options import PATH, Metadata, ModelName, Overwrite, origin, sampling_flags
from ddpm.common.errors import UserError

if TYPE_CHECKING:
    from ddpm.restoration.job import RestoreSettings, Row


@sampling_flags(steps="100 for ddnm, 20 ddrm, 250 repaint, 1000 dps", without=["labels", "sampler", "eta"])
def restore(
    model: ModelName,
    source: Annotated[Path, typer.Argument(**PATH | {"metavar": "INPUT"}, help="a picture, or a folder of them")],
    task: Annotated[str, typer.Option(help="denoise, inpaint, superresolve, deblur or colorize")],
    method: Annotated[str, typer.Option(help="ddnm, ddrm, repaint (inpainting only) or dps")] = "ddnm",
    noise: Annotated[str, typer.Option(help="σ of the noise for images in [0, 1], or auto")] = "0",
    scale: Annotated[int, typer.Option(help="superresolve: how many times larger")] = 2,
    filter: Annotated[str, typer.Option(help="superresolve: how it was reduced, average or bicubic")] = "average",
    mask: Annotated[
        str | None,
        typer.Option(
            help="inpaint: a picture whose white part is lost, a folder with one per picture, half, or random:FRACTION"
        ),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="deblur: gaussian:SIGMA, box:SIZE, motion:LENGTH:DEGREES, or a file")
    ] = None,
    degrade: Annotated[bool, typer.Option(help="INPUT is clean: degrade it first, and print PSNR and SSIM")] = False,
    samples: Annotated[int, typer.Option(help="number of posterior samples; saves mean, samples and std")] = 1,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER: an option of the method, e.g. eta=0.5, jump_repeats=5 or scale=0.3"),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="class of all images; default: no class")] = None,
    *,
    sampling: dict[str, Any],
    out: Annotated[Path | None, typer.Option(**PATH, help="a .png, or a folder if INPUT is a folder")] = None,
    overwrite: Overwrite = False,
    metadata: Metadata = True,
) -> None:
    """Restore a picture or a folder of pictures. A picture's result depends only on the seed and its name."""
    from ddpm.common.pixels import made_by
    from ddpm.model import SamplingOptions, load
    from ddpm.restoration.job import RestoreSettings, restore_file, restore_folder
    from ddpm.restoration.tasks import Task, number

    settings = RestoreSettings(
        task=Task(task, scale=scale, filter=filter, mask=mask, kernel=kernel, seed=sampling["seed"]),
        method=method,
        noise=None if noise == "auto" else number(noise, "--noise"),
        degrade=degrade,
        samples=samples,
        sampling=SamplingOptions(labels=labels, **sampling),
        options=parse_options(option or [], method),
    )
    if not source.exists():
        raise UserError(f"no picture or folder {source}")
    prior = load(model)
    made = origin(metadata, prior, options=settings.sampling.as_dict())
    if source.is_dir():
        target = out or Path("restored")
        with made_by(made):
            rows = restore_folder(prior, source, target, settings, overwrite=overwrite)
        print_rounding(rows, settings)
        report_folder(rows, target)
    else:
        target = out or Path("restored.png")
        with made_by(made):
            item, row = restore_file(prior, source, target, settings, overwrite=overwrite)
        for note in item.operator.notes:
            print(f"note: {note}")
        if settings.noise is None:
            print(f"estimated noise: {item.sigma:.4f}")
        print_rounding([row], settings)
        print_quality(row)
        print(target)


def report_folder(rows: list[Row], target: Path) -> None:
    """Print which files were left out and why, the mean PSNR and SSIM of the others, and the folder."""
    from ddpm.restoration.job import PICTURE, REPORT, averages

    for row in rows:
        if row["error"]:
            print(f"left out: {row['name']}: {row['error']}")
    print_quality(averages(rows))
    print(f"{target} ({sum(not row['error'] for row in rows)} of {len(rows)} pictures, {REPORT}, {PICTURE})")


def print_rounding(rows: list[Row], settings: RestoreSettings) -> None:
    """Print a note if σ was raised above --noise; see `rounding_noise`."""
    from ddpm.restoration.job import ROUNDING_NOTE

    given = settings.noise
    if given is not None and any(float(row["sigma"]) > round(given, 5) for row in rows if not row["error"]):
        print(f"note: {ROUNDING_NOTE}")


def print_quality(row: Row) -> None:
    """Print PSNR and SSIM of input, pseudo-inverse and result, if the original is known."""
    from ddpm.restoration.job import COMPARED

    if "psnr_result" not in row:
        return
    names = {"input": "input", "baseline": "pseudo-inverse", "result": "result"}
    print(f"{'':16}{'PSNR':>8}{'SSIM':>9}")
    for key in COMPARED:
        similarity = row.get(f"ssim_{key}", "")
        columns = f"{names[key]:16}{float(row[f'psnr_{key}']):8.2f}"
        print(columns if similarity == "" else f"{columns}{float(similarity):9.4f}")


def parse_options(words: list[str], method: str) -> dict[str, float]:
    """Read NAME=NUMBER words as options of the method; an option whose default is an int takes whole numbers."""
    from ddpm.restoration.methods import find_method
    from ddpm.restoration.tasks import number

    known = find_method(method).options
    options: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise UserError(f"{method} has no option {name!r}; it has {', '.join(known)}")
        amount = number(value, f"--option {name}")
        if isinstance(known[name], int) and not amount.is_integer():
            raise UserError(f"--option {name} takes whole numbers, not {value!r}")
        options[name] = int(amount) if isinstance(known[name], int) else amount
    return options
