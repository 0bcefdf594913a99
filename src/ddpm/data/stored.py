"""Images as a source stores them: arrays or encoded files, with their classes."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data.images import MOST_CLASSES, check_size, decode, in_mode, printable


class ImageSource(ABC):
    """Images as they are stored, by number.

    Attributes:
        labels: int64 (N,), or None if the source has no classes.
        class_names: one per class, or None if the classes only have numbers.
        skipped: (name, reason) of every file that was refused while listing.
        no_classes: why there are none, or what would give some.
    """

    no_classes = "put the images of each class in a sub-folder of its own"
    labels: np.ndarray | None
    class_names: list[str] | None
    skipped: list[tuple[str, str]]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of image `index` for messages."""

    @abstractmethod
    def image(self, index: int, channels: int, background) -> Image.Image:
        """Return image `index` at its own size, with 1 to 4 channels: mode L, LA, RGB or RGBA. Raises BrokenFile."""

    @abstractmethod
    def change_token(self, index: int) -> bytes:
        """Return bytes that change whenever image `index` changes: its content, or cheap file metadata."""

    def classes(self, source: str) -> tuple[np.ndarray, list[str]]:
        """Return labels int64 (N,) that count from 0, and the name of every class.

        Classes without names are named by their numbers, and a number that no image has is no class.

        Raises UserError if there are no classes, or a label is outside their range.
        """
        if self.labels is None:
            raise UserError(f"{source} has no classes: {self.no_classes}, or set --data.labels false")
        highest = len(self.class_names) if self.class_names else MOST_CLASSES
        outside = (self.labels < 0) | (self.labels >= highest)
        if outside.any():
            first = self.name(int(outside.argmax()))
            raise UserError(
                f"{source} holds labels from {self.labels.min()} to {self.labels.max()}, not 0..{highest - 1} "
                f"(-1 also stands for none), first for {first}: give every image a class, or set --data.labels false"
            )
        if self.class_names:
            return self.labels, self.class_names
        numbers, labels = np.unique(self.labels, return_inverse=True)  # numbers may start at 1, or leave some out
        return labels.astype(np.int64), [str(number) for number in numbers]


@dataclass
class ArraySource(ImageSource):
    """Images in one array, uint8 (N, H, W, C), possibly memory-mapped."""

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

    def change_token(self, index: int) -> bytes:
        return self.images[index].tobytes()


@dataclass
class EncodedSource(ImageSource):
    """Images in encoded form (PNG, JPEG, …).

    Attributes:
        names: one per image.
        read: index -> the encoded bytes. Raises BrokenFile. May be called from any thread.
        metadata: index -> text that changes with the bytes, found without reading them.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    metadata: Callable[[int], str]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    no_classes: str = ImageSource.no_classes
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int, channels: int, background) -> Image.Image:
        return decode(self.read(index), channels, background, name=self.names[index])

    def change_token(self, index: int) -> bytes:
        return self.metadata(index).encode()


def file_state(path: str | Path) -> str:
    """Return a file's size and time of last change. Both stay the same if the file is moved."""
    try:
        found = os.stat(path)
    except OSError:  # it is gone since it was listed; reading it will say so
        return "unreadable"
    return f"{found.st_size} {found.st_mtime_ns}"


def classes_from_paths(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Take the first folder of each path as its class. Return (None, None) if an image is not in a folder."""
    tops = [name.split("/", 1) for name in names]
    if not tops or any(len(parts) == 1 for parts in tops):
        return None, None
    class_names = sorted({parts[0] for parts in tops})
    number = {name: index for index, name in enumerate(class_names)}
    return np.array([number[parts[0]] for parts in tops], np.int64), class_names


def classes_of(
    names: Sequence[str], manifest: bytes | None, below: Sequence[str] | None = None
) -> tuple[np.ndarray | None, list[str] | None, str]:
    """Return the labels and class names of images by a `dataset.json`, or by their folders if there is none.

    Such a file, as EDM's and StyleGAN's tools write it, holds {"labels": [[name, class], ...]}, or null if there are no
    classes. The folders beside it hold a thousand images each and mean nothing.

    Args:
        names: paths relative to the `dataset.json`.
        manifest: its content. None, or anything of another form: the first folders are the classes.
        below: the paths whose first folders are the classes; by default `names`.

    The third value is what is wrong with the file, or else what would give classes; see `ImageSource.no_classes`.
    """
    below, trouble = names if below is None else below, ImageSource.no_classes
    try:
        entries = json.loads(manifest or b"")["labels"]
        classes = dict(entries or {})
        if names and entries is not None and classes.keys().isdisjoint(names):
            others = f"other images, such as {printable(str(next(iter(classes))))}" if classes else "no image"
            trouble = f"its dataset.json labels {others}; name these in it, as {names[0]}"
            return *classes_from_paths(below), trouble
    except (ValueError, KeyError, TypeError, RecursionError):
        if manifest is not None:
            trouble = 'its dataset.json is not of the form {"labels": [["NAME", CLASS], ...]}; mend it'
        return *classes_from_paths(below), trouble
    if entries is None:
        return None, None, "its dataset.json says so (labels: null); give them there"
    if not all(type(number) is int and 0 <= number < MOST_CLASSES for number in classes.values()):
        return None, None, f"its dataset.json numbers classes other than 0..{MOST_CLASSES - 1}; mend it"
    return np.array([classes.get(name, -1) for name in names], np.int64), None, trouble
