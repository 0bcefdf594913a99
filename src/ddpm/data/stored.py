"""A set as its files hold it, before it is brought to one size: either one array, or encoded images by number."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.data.decode import decode, in_mode
from ddpm.data.limits import MOST_CLASSES, check_size
from ddpm.errors import UserError


class Stored(ABC):
    """Images by number, with their classes where they have any.

    labels: int64 (N,) or None; class_names: one a class, or None; skipped: (name, reason) of what was refused while
    listing.
    """

    labels: np.ndarray | None
    class_names: list[str] | None
    skipped: list[tuple[str, str]]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """How image `index` is called in a message."""

    @abstractmethod
    def image(self, index: int, channels: int, background) -> Image.Image:
        """Image `index` at its own size, in the mode of so many channels. Raises BrokenFile."""

    @abstractmethod
    def stamp(self, index: int) -> bytes:
        """What is another when image `index` is: its content, or what its storage cheaply says of that."""

    def classes(self, source: str) -> tuple[np.ndarray, list[str]]:
        """The labels and the name of every class. Raises UserError where there are none, or impossible ones."""
        if self.labels is None:
            raise UserError(f"{source} has no classes: put its images in one sub-folder a class, or set labels: false")
        names = self.class_names
        highest = len(names) if names else MOST_CLASSES
        if self.labels.min() < 0 or self.labels.max() >= highest:
            raise UserError(
                f"{source} holds labels from {self.labels.min()} to {self.labels.max()}, not 0..{highest - 1}"
            )
        return self.labels, names or [str(number) for number in range(int(self.labels.max()) + 1)]


@dataclass
class Arrays(Stored):
    """One array: `images` uint8 (N, H, W, C), possibly memory-mapped."""

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int, channels: int, background) -> Image.Image:
        pixels = self.images[index]
        check_size(*pixels.shape[:2])
        return in_mode(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), channels, background)

    def stamp(self, index: int) -> bytes:
        return self.images[index].tobytes()


@dataclass
class Records(Stored):
    """Encoded images: `read(index)` gives the bytes of one, or raises BrokenFile, and may be called from any thread.

    `identify(index)` reads none of them and still gives another answer for other bytes under the same name.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    identify: Callable[[int], str]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int, channels: int, background) -> Image.Image:
        return decode(self.read(index), channels, background)

    def stamp(self, index: int) -> bytes:
        return self.identify(index).encode()


def file_state(path: str | Path) -> str:
    """A file's size and when it was last written, which a move keeps."""
    try:
        found = os.stat(path)
    except OSError:  # gone since it was listed: reading it says so
        return "unreadable"
    return f"{found.st_size} {found.st_mtime_ns}"


def matched_by_number(own: list[str], names: list[str]) -> bool:
    """Whether classes of two sides are the same by number: one has only numbers for names, and the other has others."""
    numbered = [str(number) for number in range(len(names))]
    return set(own) != set(names) and len(own) == len(names) and numbered in (own, names)


def classes_from_paths(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """The first folder of each path is its class; None where any image lies outside a folder."""
    tops = [name.split("/", 1) for name in names]
    if not tops or any(len(parts) == 1 for parts in tops):
        return None, None
    class_names = sorted({parts[0] for parts in tops})
    number = {name: index for index, name in enumerate(class_names)}
    return np.array([number[parts[0]] for parts in tops], np.int64), class_names
