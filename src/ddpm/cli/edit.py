"""`ddpm edit`: change an image by noising and denoising it, or by inverting it and generating it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddpm.cli.options import MODEL_HELP, PATH, BatchSize, Guidance, Overwrite
from ddpm.common.errors import UserError
from ddpm.common.files import check_output

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm.model import Model


def edit(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    source: Annotated[Path, typer.Argument(**PATH | {"metavar": "INPUT"}, help="a picture, or a folder of them")],
    strength: Annotated[float | None, typer.Option(help="SDEdit: noise by this share of the timesteps")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="SDEdit at ten strengths: what is kept, what is real")] = False,
    invert: Annotated[bool, typer.Option("--invert", help="there and back from ten depths: the round trip")] = False,
    to: Annotated[str | None, typer.Option(help="translate to this class, through inversion")] = None,
    labels: Annotated[str | None, typer.Option(help="the class of INPUT; default: no class")] = None,
    guidance: Guidance = 1.0,
    sampler: Annotated[str, typer.Option(help="of SDEdit; see ddpm sample")] = "ancestral",
    steps: Annotated[int, typer.Option(help="of a whole SDEdit run; strength S takes S of them")] = 100,
    evaluations: Annotated[int, typer.Option(help="network evaluations of an inversion and the way back")] = 200,
    order: Annotated[int, typer.Option(help="of the inversion: 1 DDIM, 2 midpoint")] = 2,
    depth: Annotated[float, typer.Option(help="of a translation: the share of timesteps inverted")] = 1.0,
    seed: Annotated[int, typer.Option(help="picture i's noise is always the same")] = 0,
    batch_size: BatchSize = None,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32; inversion takes fp32")] = "auto",
    out: Annotated[Path | None, typer.Option(**PATH, help="a .png, a folder for a folder, or a figure")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Edit a picture or a folder of pictures: one of --strength, --curve, --invert and --to."""
    from ddpm.editing import Editor, fidelity_curve, reconstructions, sdedit, translate
    from ddpm.editing.images import draw_curve, draw_reconstructions
    from ddpm.model import load
    from ddpm.plotting.plots import save_figure

    if sum([strength is not None, curve, invert, to is not None]) != 1:
        raise UserError("say what to do: one of --strength 0.3, --curve, --invert and --to CLASS")
    if order not in (1, 2):
        raise UserError(f"--order takes 1 (DDIM) or 2 (midpoint), not {order}")
    if not source.exists():
        raise UserError(f"no picture or folder {source}")
    drawing = curve or invert
    target = out or Path("edited.png" if drawing or source.is_file() else "edited")
    check(target, drawing, source.is_dir(), overwrite)
    prior = load(model)
    editor = Editor(prior, labels=labels, guidance=guidance, seed=seed, batch_size=batch_size, precision=precision)
    names, images = read(source, prior)
    if curve:
        points = fidelity_curve(editor, images, sampler=sampler, steps=steps)
        print("strength   PSNR    SSIM  surprise")
        for point in points:
            print(f"{point.strength:8.1f} {point.psnr:6.2f} {point.ssim:7.4f} {point.surprise:9.4f}")
        save_figure(draw_curve(points), target, overwrite=overwrite)
    elif invert:
        trips = reconstructions(editor, images, evaluations=evaluations, order=order)
        print("depth   error/255  largest/255   PSNR")
        for trip in trips:
            print(f"{trip.depth:5.1f} {trip.error * 127.5:11.3f} {trip.largest * 127.5:12.2f} {trip.psnr:6.2f}")
        save_figure(draw_reconstructions(images, trips), target, overwrite=overwrite)
    else:
        if strength is not None:
            edited = sdedit(editor, images, strength, sampler=sampler, steps=steps)
        else:
            edited = translate(editor, images, labels, to, depth=depth, evaluations=evaluations // 2, order=order)
        write(names, images, edited, target, source.is_dir(), overwrite)
    print(target)


def check(target: Path, drawing: bool, folder: bool, overwrite: bool) -> None:
    """Refuse a target before any work is done."""
    from ddpm.plotting.plots import check_figure

    if drawing:
        check_figure(target, overwrite=overwrite)
    elif not folder:
        check_output(target, (".png",), overwrite=overwrite)
    elif target.exists() and not overwrite and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{target} exists: give another --out, or --overwrite")


def read(source: Path, model: Model) -> tuple[list[str], Tensor]:
    """The names and images of a picture or a folder; says which pictures were left out."""
    from ddpm.editing.images import read_fitted, read_folder

    if not source.is_dir():
        return [source.stem], read_fitted(source, model)
    names, images, failures = read_folder(source, model)
    for failure in failures:
        print(f"left out: {failure}")
    return names, images


def write(names: list[str], images: Tensor, edited: Tensor, target: Path, folder: bool, overwrite: bool) -> None:
    """One PNG a picture, and how much of each was kept."""
    from ddpm.common.fidelity import psnr, ssim
    from ddpm.common.pixels import save_picture, to_uint8

    for name, before, after in zip(names, images, edited, strict=True):
        kept = f"PSNR {float(psnr(after[None], before[None])):.2f}"
        if min(before.shape[1:]) >= 11:
            kept += f", SSIM {float(ssim(after[None], before[None])):.4f}"
        print(f"{name}: {kept} to the input")
        save_picture(to_uint8(after), target / f"{name}.png" if folder else target, overwrite=overwrite)
