"""`ddpm edit`: change an image by noising and denoising it, or by inverting it and generating it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpm.cli.options import PATH, Metadata, ModelName, Overwrite, origin, sampling_flags
from ddpm.common.errors import UserError
from ddpm.common.files import check_output

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm.model import Model


@sampling_flags(steps=100, sampler="ancestral", without=["labels", "spacing"])
def edit(
    model: ModelName,
    source: Annotated[Path, typer.Argument(**PATH | {"metavar": "INPUT"}, help="a picture, or a folder of them")],
    strength: Annotated[
        float | None, typer.Option(help="SDEdit: noise the picture by this fraction of the timesteps")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="plot fidelity against realism over ten strengths of SDEdit")
    ] = False,
    invert: Annotated[
        bool, typer.Option("--invert", help="plot the round-trip error of an inversion over ten depths")
    ] = False,
    to: Annotated[str | None, typer.Option(help="translate INPUT to this class by inversion")] = None,
    labels: Annotated[str | None, typer.Option(help="class of INPUT; default: no class")] = None,
    *,
    sampling: dict[str, Any],
    evaluations: Annotated[
        int, typer.Option(help="network evaluations of an inversion and the generation after it")
    ] = 200,
    order: Annotated[int, typer.Option(help="order of the inversion: 1 is DDIM, 2 is midpoint")] = 2,
    depth: Annotated[float, typer.Option(help="fraction of the timesteps that a translation inverts")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(**PATH, help="a .png; a folder if INPUT is a folder; or the file of a plot")
    ] = None,
    overwrite: Overwrite = False,
    metadata: Metadata = True,
) -> None:
    """Edit a picture or a folder of pictures.

    Give one of --strength, --curve, --invert and --to. SDEdit of strength S takes the last S × steps of a run. Picture
    i of a seed always gets the same noise.
    """
    from ddpm.common.pixels import made_by
    from ddpm.editing import Editor, fidelity_curve, reconstructions, sdedit, translate
    from ddpm.editing.pictures import draw_curve, draw_reconstructions
    from ddpm.model import load
    from ddpm.plotting.plots import save_figure

    if sum([strength is not None, curve, invert, to is not None]) != 1:
        raise UserError("say what to do: give one of --strength 0.3, --curve, --invert and --to CLASS")
    if order not in (1, 2):
        raise UserError(f"--order takes 1 (DDIM) or 2 (midpoint), not {order}")
    if not source.exists():
        raise UserError(f"no picture or folder {source}")
    plots = curve or invert
    target = out or Path("edited.png" if plots or source.is_file() else "edited")
    check(target, plots, source.is_dir(), overwrite)
    prior = load(model)
    editor = Editor(prior, labels=labels, **sampling)
    names, images = read(source, prior)
    if curve:
        points = fidelity_curve(editor, images)
        print("strength   PSNR    SSIM  denoising loss")
        for point in points:
            print(f"{point.strength:8.1f} {point.psnr:6.2f} {point.ssim:7.4f} {point.denoising_loss:15.4f}")
        save_figure(draw_curve(points), target, overwrite=overwrite)
    elif invert:
        trips = reconstructions(editor, images, evaluations=evaluations, order=order)
        print("depth   error/255  largest/255   PSNR")
        for trip in trips:
            print(f"{trip.depth:5.1f} {trip.error * 127.5:11.3f} {trip.largest * 127.5:12.2f} {trip.psnr:6.2f}")
        save_figure(draw_reconstructions(images, trips), target, overwrite=overwrite)
    else:
        if strength is not None:
            edited = sdedit(editor, images, strength)
        else:
            edited = translate(editor, images, labels, to, depth=depth, evaluations=evaluations // 2, order=order)
        with made_by(origin(metadata, prior, options=editor.options.as_dict())):
            write(names, images, edited, target, source.is_dir(), overwrite)
    print(target)


def check(target: Path, plots: bool, folder: bool, overwrite: bool) -> None:
    """Refuse an output before any work is done."""
    from ddpm.plotting.plots import check_figure

    if plots:
        check_figure(target, overwrite=overwrite)
    elif not folder:
        check_output(target, (".png",), overwrite=overwrite)
    elif target.exists() and not overwrite and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{target} exists: give another --out, or --overwrite")


def read(source: Path, model: Model) -> tuple[list[str], Tensor]:
    """Read a picture or a folder: names and images (N, C, H, W). Prints what was left out."""
    from ddpm.editing.pictures import read_fitted, read_folder

    if not source.is_dir():
        return [source.stem], read_fitted(source, model)
    names, images, failures = read_folder(source, model)
    for failure in failures:
        print(f"left out: {failure}")
    return names, images


def write(names: list[str], images: Tensor, edited: Tensor, target: Path, folder: bool, overwrite: bool) -> None:
    """Write one PNG per picture, and print how close each is to its input."""
    from ddpm.common.fidelity import psnr, ssim_or_none
    from ddpm.common.pixels import save_picture, to_uint8

    for name, before, after in zip(names, images, edited, strict=True):
        kept = f"PSNR {float(psnr(after[None], before[None])):.2f}"
        similarity = ssim_or_none(after[None], before[None])
        if similarity is not None:
            kept += f", SSIM {float(similarity):.4f}"
        print(f"{name}: {kept} to the input")
        save_picture(to_uint8(after), target / f"{name}.png" if folder else target, overwrite=overwrite)
