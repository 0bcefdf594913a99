"""Divide a folder of images into train/ and test/, so that a model can be judged by images it has not seen.

    python -m experiments.hold_out FOLDER $DDPM_DATA/flowers

Every tenth image of each class goes to test/. Files are hard links where the disk allows, copies otherwise. The new
folder is a SOURCE: `flowers` is its training part, `flowers:test` the rest.
"""

import argparse
import os
import shutil
from pathlib import Path

from ddpm.data.images import ENDINGS

EVERY = 10


def hold_out(source: Path, target: Path) -> dict[str, int]:
    """Make `target`, which must not exist; returns how many images each part has."""
    target.mkdir(parents=True)
    counts = {"train": 0, "test": 0}
    for folder in sorted({path.parent for path in source.rglob("*") if path.name.lower().endswith(ENDINGS)}):
        images = sorted(path for path in folder.iterdir() if path.name.lower().endswith(ENDINGS))
        for index, image in enumerate(images):
            part = "test" if index % EVERY == EVERY - 1 else "train"
            place = target / part / image.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(image, place)
            counts[part] += 1
    return counts


def link_or_copy(image: Path, place: Path) -> None:
    try:
        os.link(image, place)
    except OSError:
        shutil.copyfile(image, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    counts = hold_out(options.folder, options.target)
    print(f"{options.target}: {counts['train']:,} images to train with, {counts['test']:,} held out")


if __name__ == "__main__":
    main()
