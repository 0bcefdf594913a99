"""Large sets that are read in their own order: shards, each a sequence of encoded images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddpm.data.archives import read_tar_image, scan_tar
from ddpm.data.limits import BrokenFile


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
