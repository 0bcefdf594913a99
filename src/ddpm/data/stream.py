"""Data sets too large to index, read shard by shard through a shuffle buffer.

The seed alone fixes the order. An epoch visits the shards in a random order, LANES of them at a time, one row from
each in turn. These images fill a block of `shuffle_buffer` images, and each block is used in a random order before
the next one is read. So every image comes exactly once per epoch, and the only state to save is where a block began.

Every process reads the same blocks and decodes only its own images. An image does not depend on the number of
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
from ddpm.data.datasets import ImageDataset, Report, workers
from ddpm.data.images import BrokenFile, decode, fit, to_tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image of a shard, not yet decoded. `following` is the number of the row after it, where reading goes on."""

    name: str
    data: bytes
    label: int | None
    following: int


class Shards(Protocol):
    """names: one a shard; class_names where the source knows them; count: images in all, where it is known."""

    names: list[str]
    class_names: list[str] | None
    count: int | None

    def rows(self, shard: int, start: int, skip: Callable[[str, str], None]) -> Iterator[Encoded]:
        """The images of a shard from row `start` on, in their order; `skip(name, reason)` is told of broken ones."""


class TarShards:
    """Plain tar files, read from their first byte to their last. Their classes are unknown until all has been read."""

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


LANES = 8  # shards read side by side
BLOCK_BYTES = 2**28  # of encoded images in one block, however many `shuffle_buffer` allows
REMEMBERED = 64  # block starts kept, so that a step asked for again is found again


@dataclass
class Place:
    """Where a block begins.

    epoch, block: counted from 0, blocks within the epoch; first: number of its first image since the very beginning;
    opened: how many shards of the epoch's order have been begun; lanes: [shard, next row] of each that is being read.
    """

    epoch: int = 0
    block: int = 0
    first: int = 0
    opened: int = 0
    lanes: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """The images of a block, the random order they are used in, and where the block after it begins."""

    place: Place
    rows: list[Encoded]
    order: list[int]
    following: Place

    def __contains__(self, number: int) -> bool:
        return self.place.first <= number < self.following.first


class StreamDataset(ImageDataset):
    """A streamed set. Its length is known only where the source tells it.

    `draw` is meant to be called with rising numbers; going back a little costs a block read again, going back far costs
    reading from the start.
    """

    def __init__(self, shards: Shards, config: DataConfig):
        if not shards.names:
            raise UserError(f"{config.source} holds no shards")
        if config.labels and not shards.class_names:
            raise UserError(
                f"{config.source}, streamed, does not say which classes it has: set streaming: false to index it first"
            )
        self.shards, self.config, self.image_shape = shards, config, config.image_shape
        self.class_names = shards.class_names if config.labels else None
        self.report = Report(config.source)
        settings = config.model_dump_json(exclude={"random_flip", "source"})  # a set that was moved is still the same
        self.fingerprint = hashlib.blake2b("\n".join([settings, *shards.names]).encode(), digest_size=16).hexdigest()
        self._reader = BlockReader(shards, config.shuffle_buffer, self.report)
        self._decoders, self._reading = ThreadPoolExecutor(workers()), ThreadPoolExecutor(1)
        self._restart(None, Place())

    def __len__(self) -> int:
        if self.shards.count is None:
            raise UserError(f"{self.config.source} is streamed: how many images it holds is not known before its end")
        return self.shards.count

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        raise UserError(f"{self.config.source} is streamed: its images come in their order and have no numbers")

    def draw(self, seed: int, numbers: range) -> tuple[Tensor, Tensor | None]:
        if seed != self._seed:
            self._restart(seed, Place() if self._seed is not None else self._starts[-1])
        wanted = [(block := self._block_of(number), number - block.place.first) for number in numbers]
        images, labels = zip(*self._decoders.map(lambda asked: self._next_whole(*asked), wanted), strict=True)
        return torch.stack(images), torch.tensor(labels) if self.config.labels else None

    def state_dict(self, number: int) -> dict[str, Any]:
        """The start of the block that image `number` is in, as plain numbers."""
        place = [start for start in self._starts if start.first <= number][-1]
        return {"seed": self._seed, "place": asdict(place), "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{self.config.source} is not the stream that was being read: its shards or settings differ"
            )
        self._restart(state["seed"], Place(**state["place"]))

    def close(self) -> None:
        self._reader.closed.set()

    def _restart(self, seed: int | None, place: Place) -> None:
        self._seed, self._starts = seed, [Place(), place]
        self._block: Block | None = None
        self._coming: Future[Block] | None = None

    def _block_of(self, number: int) -> Block:
        """The block an image is in: the one in use, one to come, or an earlier one read again."""
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

    def _submit(self, place: Place) -> "Future[Block]":
        assert self._seed is not None  # `draw` has set it
        return self._reading.submit(self._reader.block, self._seed, place)

    def _next_whole(self, block: Block, place: int) -> tuple[Tensor, int]:
        """The image at a place of a block, or, where it is broken, the next in the block that is whole."""
        for step in range(len(block.rows)):
            row = block.rows[block.order[(place + step) % len(block.rows)]]
            try:
                if self.config.labels and row.label is None:
                    raise BrokenFile("it has no class")
                image = decode(row.data, self.config.channels, self.config.background)
                image = fit(image, self.config.size, self.config.fit, self.config.background)
                return to_tensor(image), row.label or 0
            except BrokenFile as error:
                self.report.skip(row.name, str(error))
        raise UserError(f"{self.config.source} holds no usable image in {len(block.rows):,} rows one after another")


class BlockReader:
    """Reads blocks, each from its place; going straight on costs nothing extra.

    `closed`, once set, ends a block between two rows: Python waits for its threads before it leaves.
    """

    def __init__(self, shards: Shards, shuffle_buffer: int, report: Report):
        self.shards, self.shuffle_buffer, self.report = shards, shuffle_buffer, report
        self.closed = threading.Event()
        self._at: tuple[int | None, Place] | None = None
        self._lanes: list[_Lane] = []

    def block(self, seed: int, place: Place) -> Block:
        """The block that begins at `place`; where the epoch has nothing left there, the first of the next epoch."""
        rows, opened = self._rows(seed, place)
        if not rows:
            if place.opened == 0:
                raise UserError(f"{self.report.source} holds no images")
            place = Place(place.epoch + 1, 0, place.first)
            rows, opened = self._rows(seed, place)
        first = place.first + len(rows)
        if self._lanes:
            lanes = [[lane.shard, lane.row] for lane in self._lanes]
            following = Place(place.epoch, place.block + 1, first, opened, lanes)
        else:
            following = Place(place.epoch + 1, 0, first)
        self._at = (seed, following)
        generator = torch.Generator().manual_seed(derive_seed(seed, "block", place.epoch, place.block))
        return Block(place, rows, torch.randperm(len(rows), generator=generator).tolist(), following)

    def _rows(self, seed: int, place: Place) -> tuple[list[Encoded], int]:
        if self._at != (seed, place):
            self._lanes = [self._lane(shard, row) for shard, row in place.lanes]
        generator = torch.Generator().manual_seed(derive_seed(seed, "shards", place.epoch))
        order = torch.randperm(len(self.shards.names), generator=generator).tolist()
        rows: list[Encoded] = []
        size, opened = 0, place.opened
        while len(rows) < self.shuffle_buffer and size < BLOCK_BYTES:
            while len(self._lanes) < LANES and opened < len(order):
                self._lanes.append(self._lane(order[opened], 0))
                opened += 1
            for lane in list(self._lanes):
                if self.closed.is_set():
                    raise CancelledError
                row = next(lane.rows, None)
                if row is None:
                    self._lanes.remove(lane)
                else:
                    rows.append(row)
                    size += len(row.data)
                    lane.row = row.following
            if not self._lanes and opened == len(order):
                break
        return rows, opened

    def _lane(self, shard: int, row: int) -> "_Lane":
        return _Lane(shard, row, self.shards.rows(shard, row, self.report.skip))


@dataclass
class _Lane:
    shard: int
    row: int
    rows: Iterator[Encoded]
