"""Split a folder of images into train/ and test/, to evaluate a model by images that it has not seen.

    python -m experiments.hold_out FOLDER $DDPM_DATA/flowers

Every tenth image of each class goes to test/. Files become hard links if the file system allows it, otherwise copies.
The new folder is a SOURCE: `flowers` is its training part, `flowers:test` the rest.
"""

import os
import shutil
from pathlib import Path

from ddpm.data.images import ENDINGS
from experiments.lib import command_line, launch

EVERY = 10


def hold_out(source: Path, target: Path) -> dict[str, int]:
    """Create the folder `target`; return the number of images in `train` and `test`.

    Raises:
        FileExistsError: `target` exists.
    """
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
    """Make a hard link, or a copy if that is not possible."""
    try:
        os.link(image, place)
    except OSError:
        shutil.copyfile(image, place)


def main() -> None:
    """Parse the command line and split the folder."""
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, help="folder of images, with a subfolder per class")
    parser.add_argument("target", type=Path, help="folder to create")
    options = parser.parse_args()
    if options.target.exists():
        raise SystemExit(f"error: {options.target} exists; remove it or choose another folder")
    counts = hold_out(options.folder, options.target)
    print(f"{options.target}: {counts['train']:,} images to train with, {counts['test']:,} held out")


if __name__ == "__main__":
    launch(main)
