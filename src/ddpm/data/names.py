"""What the pictures of a folder are called."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def picture_names(paths: Sequence[Path]) -> list[str]:
    """The paths without their endings; an ending stays where another picture would go by the same name."""
    stems = [path.with_suffix("") for path in paths]
    uses = Counter([*stems, *paths])  # the paths too: beside a.png, a.png.bmp cannot be called a.png
    return [str(stem if uses[stem] == 1 else path) for stem, path in zip(stems, paths, strict=True)]
