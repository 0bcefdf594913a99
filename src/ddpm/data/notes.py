"""What a user should know about a data set before training on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.data.datasets import ImageDataset, LazyDataset, MemoryDataset

NAMED = 10  # classes named in a note
LOOKED_AT = 64  # images of a set that is not in memory, for its brightest level
DARK = 128  # of 255; photographs, drawings and digits all have brighter pixels


def data_notes(dataset: ImageDataset) -> list[str]:
    """Return what a user should know about a data set, one string per note.

    The notes name classes that were left out or have no images, numeric class names in the order of text, and images
    that are dark throughout. An ordinary data set has none. The files that are not read are in `dataset.report`.
    """
    notes = []
    if lost := dataset.report.lost_classes:
        notes.append(f"left out, because none of their images can be read: {_named('class', lost)}")
    if dataset.class_names is not None and isinstance(dataset, MemoryDataset | LazyDataset):
        notes += [_empty_classes(dataset.class_names, dataset.labels), _text_order(dataset.class_names)]
    notes.append(_dark(dataset))
    return [note for note in notes if note]


def _empty_classes(class_names: Sequence[str], labels: Tensor | None) -> str:
    if labels is None:
        return ""
    counts = torch.bincount(labels.cpu(), minlength=len(class_names)).tolist()
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    return f"no image has {_named('class', empty)}: a model cannot learn to sample them" if empty else ""


def _text_order(class_names: Sequence[str]) -> str:
    if not all(name.isdecimal() for name in class_names):
        return ""
    by_number = sorted(class_names, key=int)
    if by_number == list(class_names):
        return ""
    return (
        f"the class names are numbers in the order of text: {', '.join(class_names[:4])}, ...; give --labels these "
        "names, or rename the folders with leading zeros"
    )


def _dark(dataset: ImageDataset) -> str:
    """Look for 12-bit data in 16-bit files and the like: scaled by the full range, they are nearly black."""
    if isinstance(dataset, MemoryDataset):
        images = dataset.images
    elif isinstance(dataset, LazyDataset):
        images, _ = dataset.batch(torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).round().long())
    else:
        return ""
    if images.shape[1] in (2, 4):
        images = images[:, :-1]  # without alpha
    brightest = int(images.max())
    if brightest >= DARK:
        return ""
    return (
        f"no pixel is above {brightest / 255:.0%} of the range (level {brightest} of 255): "
        "if the files hold fewer bits than their format, such as 12 in 16, scale them to the full range first"
    )


def _named(kind: str, names: Sequence[str]) -> str:
    plural = kind if len(names) == 1 else f"{kind}es"
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{plural} {', '.join(names[:NAMED])}{more}"
