"""`ddpm data`: count what a source holds, and show how its images look to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddpm.cli.options import PATH, Overwrite
from ddpm.common.files import refuse_existing
from ddpm.data.config import SMALLEST_SIDE, checked_config

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm.data import LazyDataset, MemoryDataset


COLUMNS = 10  # images per row; also the most classes or rows
DEFAULT_SIZE = 64  # pixels, for files that may differ in size
CLASSES_SHOWN = 100


def data(
    source: Annotated[str, typer.Argument(help="a name, hf:user/set, or a path; NAME:test is a split")],
    image_size: Annotated[
        int | None, typer.Option(min=SMALLEST_SIDE, help="side in pixels; default: as stored, or 64")
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, max=4, help="1 to 4; default: as stored, or 3")] = None,
    fit: Annotated[str, typer.Option(help="crop or pad")] = "crop",
    out: Annotated[
        Path | None,
        typer.Option(**PATH, help="the contact sheet; default: contact_sheet.png, which is replaced"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Count a source's images, sizes, classes and broken files.

    Also save a contact sheet.
    """
    from ddpm.common.pixels import save_grid, to_float
    from ddpm.data.datasets import make_ready
    from ddpm.data.folder import CONTACT_SHEET
    from ddpm.data.notes import data_notes
    from ddpm.data.sources import find_stored
    from ddpm.data.stored import ArraySource

    sheet = out or Path(CONTACT_SHEET)
    refuse_existing(sheet, overwrite or out is None)
    stored = find_stored(source)
    stored_size = stored.images.shape[1:3] if isinstance(stored, ArraySource) else (DEFAULT_SIZE, DEFAULT_SIZE)
    stored_channels = stored.images.shape[3] if isinstance(stored, ArraySource) else 3
    config = checked_config(
        source,
        image_size=image_size or stored_size,
        channels=channels or stored_channels,
        labels=stored.labels is not None,
        fit=fit,
    )
    dataset = make_ready(stored, config)
    images, _ = dataset.batch(_shown(dataset))
    save_grid(to_float(images), sheet, columns=COLUMNS, overwrite=overwrite or out is None)
    for name, value in _facts(source, dataset).items():
        print(f"{name:<12}{value}")
    print(f"{'sheet':<12}{sheet}")
    for note in [dataset.report.summary(), *data_notes(dataset)]:
        if note:
            print(note)


def _facts(source: str, dataset: MemoryDataset | LazyDataset) -> dict[str, str]:
    import torch

    channels, height, width = dataset.image_shape
    sizes = dataset.report.sizes.most_common(4)
    stored = ", ".join(f"{w}x{h}: {count:,}" for (h, w), count in sizes)
    more = len(dataset.report.sizes) - len(sizes)
    facts = {
        "source": source,
        "images": f"{len(dataset):,}",
        "stored as": (stored or "unknown: too many to look at each") + (f", and {more:,} other sizes" if more else ""),
        "ready as": f"{width}x{height}, {channels} channel{'s' * (channels > 1)}",
        "fingerprint": dataset.fingerprint,
    }
    if dataset.class_names is not None and dataset.labels is not None:
        counts = torch.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist()
        named = [f"{name} {count:,}" for name, count in zip(dataset.class_names, counts, strict=True)]
        shown = ", ".join(named[:CLASSES_SHOWN]) + (", ..." if len(named) > CLASSES_SHOWN else "")
        facts["classes"] = f"{len(named)}: {shown}"
    return facts


def _shown(dataset: MemoryDataset | LazyDataset) -> Tensor:
    """Choose images spread evenly over the data set: one row for each of the first classes, or a square."""
    import torch

    if dataset.labels is None:
        return _spread(torch.arange(len(dataset)), min(COLUMNS * COLUMNS, len(dataset)))
    classes = torch.unique(dataset.labels)[:COLUMNS].tolist()
    return torch.cat([_spread(torch.nonzero(dataset.labels == number)[:, 0], COLUMNS) for number in classes])


def _spread(indices: Tensor, count: int) -> Tensor:
    import torch

    return indices[torch.linspace(0, len(indices) - 1, count).round().long()]
