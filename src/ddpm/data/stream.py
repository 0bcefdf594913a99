"""Data sets too large to index, read shard by shard through a shuffle buffer.

The order depends on the seed alone. An epoch visits the shards in a random order, OPEN_SHARDS of them at a time, one
row from each in turn. These images fill a block of `shuffle_buffer` images, and each block is used in a random order
before the next one is read. So every image comes exactly once per epoch, and the only state to save is where a block
begins.

Every process reads the same blocks and decodes only its own images, so the images do not depend on the number of
processes.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.randomness import derive_seed
from ddpm.data.archives import read_tar_image, scan_tar
from ddpm.data.config import DataConfig
from ddpm.data.datasets import ImageDataset, Report, settings_of, workers
from ddpm.data.images import BrokenFile, decode, resize_to, to_tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image of a shard, still encoded. `following` is the number of the next row of the shard."""

    name: str
    data: bytes
    label: int | None
    following: int


class Shards(Protocol):
    """A source of streamed images."""

    names: list[str]  # one per shard
    class_names: list[str] | None  # None if the source does not tell
    count: int | None  # number of images; None if the source does not tell

    def rows(self, shard: int, start: int, skip: Callable[[str, str], None]) -> Iterator[Encoded]:
        """Yield the images of a shard in order, from row `start`. Call `skip(name, reason)` for broken ones."""


class TarShards:
    """Plain tar files, read from start to end. Their classes are not known before the end."""

    class_names: list[str] | None = None
    count: int | None = None

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.names = [path.name for path in paths]

    def rows(self, shard: int, start: int, skip: Callable[[str, str], None]) -> Iterator[Encoded]:
        path = self.paths[shard]
        for number, image in enumerate(scan_tar(path, skip)):
            if number >= start:
                try:
                    data = read_tar_image(path, image.offset, image.size)
                except BrokenFile as error:
                    skip(f"{path.name}/{image.name}", str(error))
                    continue
                yield Encoded(f"{path.name}/{image.name}", data, image.label, number + 1)


OPEN_SHARDS = 8  # shards that are read in turn
BLOCK_BYTES = 2**28  # of encoded images in one block, even if `shuffle_buffer` allows more
REMEMBERED = 64  # block starts that are kept, so that an earlier step is found again


@dataclass
class StreamPosition:
    """The start of a block. Checkpoints hold these fields."""

    epoch: int = 0
    block: int = 0  # within the epoch
    first: int = 0  # number of the block's first image, counted from the start of epoch 0
    opened: int = 0  # number of shards of the epoch's order that have been opened
    lanes: list[list[int]] = field(default_factory=list)  # [shard, next row] of each open shard


@dataclass(frozen=True)
class ShuffleBlock:
    """The images of a block, the random order in which they are used, and the start of the next block."""

    place: StreamPosition
    rows: list[Encoded]
    order: list[int]
    following: StreamPosition

    def __contains__(self, number: int) -> bool:
        return self.place.first <= number < self.following.first


class StreamDataset(ImageDataset):
    """A streamed data set. Its length is known only if the source tells it.

    Call `draw` with increasing positions. A few blocks back costs reading one block again; further back, all of them.

    Raises UserError if there are no shards, or labels are wanted and the source does not tell its classes.
    """

    def __init__(self, shards: Shards, config: DataConfig):
        if not shards.names:
            raise UserError(f"{config.source} holds no shards")
        if config.labels and not shards.class_names:
            raise UserError(
                f"{config.source}, streamed, does not say which classes it has: "
                "set --data.streaming false to index it first"
            )
        self.shards, self.config, self.image_shape = shards, config, config.image_shape
        self.class_names = shards.class_names if config.labels else None
        self.report = Report(config.source)
        about = "\n".join([settings_of(config), *shards.names])
        self.fingerprint = hashlib.blake2b(about.encode(), digest_size=16).hexdigest()
        self._reader = BlockReader(shards, config.shuffle_buffer, self.report)
        self._decoders, self._reading = ThreadPoolExecutor(workers()), ThreadPoolExecutor(1)
        self._restart(None, StreamPosition())

    def __len__(self) -> int:
        if self.shards.count is None:
            raise UserError(f"{self.config.source} is streamed: its number of images is not known before its end")
        return self.shards.count

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        raise UserError(f"{self.config.source} is streamed: its images come in their order and have no numbers")

    def draw(self, seed: int, numbers: range) -> tuple[Tensor, Tensor | None]:
        if seed != self._seed:
            self._restart(seed, StreamPosition() if self._seed is not None else self._starts[-1])
        wanted = [(block := self._block_of(number), number - block.place.first) for number in numbers]
        images, labels = zip(*self._decoders.map(lambda wish: self._next_readable(*wish), wanted), strict=True)
        return torch.stack(images), torch.tensor(labels) if self.config.labels else None

    def state_dict(self, number: int) -> dict[str, Any]:
        """Return the start of the block of image `number`, as plain numbers."""
        place = [start for start in self._starts if start.first <= number][-1]
        return {"seed": self._seed, "place": asdict(place), "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise UserError(f"{self.config.source} is not the stream of the checkpoint: its shards or settings differ")
        self._restart(state["seed"], StreamPosition(**state["place"]))

    def close(self) -> None:
        self._reader.closed.set()

    def _restart(self, seed: int | None, place: StreamPosition) -> None:
        self._seed, self._starts = seed, [StreamPosition(), place]
        self._block: ShuffleBlock | None = None
        self._coming: Future[ShuffleBlock] | None = None

    def _block_of(self, number: int) -> ShuffleBlock:
        """Return the block of an image: the current one, a later one, or an earlier one that is read again."""
        if self._block is None or number < self._block.place.first:
            self._starts = [start for start in self._starts if start.first <= number]
            self._block = self._submit(self._starts[-1]).result()
            self._coming = None
        while number not in self._block:
            coming = self._coming or self._submit(self._block.following)
            self._block = coming.result()
            self._starts = [self._starts[0], *self._starts[1:][-REMEMBERED:], self._block.place]
            self._coming = self._submit(self._block.following)
        return self._block

    def _submit(self, place: StreamPosition) -> "Future[ShuffleBlock]":
        assert self._seed is not None  # `draw` has set it
        return self._reading.submit(self._reader.block, self._seed, place)

    def _next_readable(self, block: ShuffleBlock, place: int) -> tuple[Tensor, int]:
        """Return the image at a place of a block or, if it is broken, the next one of the block that can be read."""
        for step in range(len(block.rows)):
            row = block.rows[block.order[(place + step) % len(block.rows)]]
            try:
                if self.config.labels and row.label is None:
                    raise BrokenFile("it has no class")
                image = decode(row.data, self.config.channels, self.config.background, name=row.name)
                image = resize_to(image, self.config.size, self.config.fit, self.config.background)
                return to_tensor(image), row.label or 0
            except BrokenFile as error:
                self.report.skip(row.name, str(error))
        raise UserError(f"{self.config.source} holds no usable image in {len(block.rows):,} rows one after another")


class BlockReader:
    """Reads blocks, each from its position. Reading them in order costs nothing extra.

    Setting `closed` stops between two rows: Python waits for its threads before it exits.
    """

    def __init__(self, shards: Shards, shuffle_buffer: int, report: Report):
        self.shards, self.shuffle_buffer, self.report = shards, shuffle_buffer, report
        self.closed = threading.Event()
        self._at: tuple[int | None, StreamPosition] | None = None
        self._open: list[ShardReader] = []

    def block(self, seed: int, place: StreamPosition) -> ShuffleBlock:
        """Read the block that begins at `place`, or the first of the next epoch if this one is at its end."""
        rows, opened = self._rows(seed, place)
        if not rows:
            if place.opened == 0:
                raise UserError(f"{self.report.source} holds no images")
            place = StreamPosition(place.epoch + 1, 0, place.first)
            rows, opened = self._rows(seed, place)
        first = place.first + len(rows)
        if self._open:
            lanes = [[reader.shard, reader.row] for reader in self._open]
            following = StreamPosition(place.epoch, place.block + 1, first, opened, lanes)
        else:
            following = StreamPosition(place.epoch + 1, 0, first)
        self._at = (seed, following)
        generator = torch.Generator().manual_seed(derive_seed(seed, "block", place.epoch, place.block))
        return ShuffleBlock(place, rows, torch.randperm(len(rows), generator=generator).tolist(), following)

    def _rows(self, seed: int, place: StreamPosition) -> tuple[list[Encoded], int]:
        if self._at != (seed, place):
            self._open = [self._reader(shard, row) for shard, row in place.lanes]
        generator = torch.Generator().manual_seed(derive_seed(seed, "shards", place.epoch))
        order = torch.randperm(len(self.shards.names), generator=generator).tolist()
        rows: list[Encoded] = []
        size, opened = 0, place.opened
        while len(rows) < self.shuffle_buffer and size < BLOCK_BYTES:
            while len(self._open) < OPEN_SHARDS and opened < len(order):
                self._open.append(self._reader(order[opened], 0))
                opened += 1
            for reader in list(self._open):
                if self.closed.is_set():
                    raise CancelledError
                row = next(reader.rows, None)
                if row is None:
                    self._open.remove(reader)
                else:
                    rows.append(row)
                    size += len(row.data)
                    reader.row = row.following
            if not self._open and opened == len(order):
                break
        return rows, opened

    def _reader(self, shard: int, row: int) -> "ShardReader":
        return ShardReader(shard, row, self.shards.rows(shard, row, self.report.skip))


@dataclass
class ShardReader:
    """An open shard: its number, its next row, and the rows from there."""

    shard: int
    row: int
    rows: Iterator[Encoded]
