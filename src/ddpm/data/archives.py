"""Images in a .zip file, or in tar shards as WebDataset writes them. Nothing is unpacked onto the disk."""

import glob
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ddpm.common.errors import UserError
from ddpm.common.files import user_path
from ddpm.data.folder import MANIFEST, SPLIT_FOLDERS, is_hidden, is_image
from ddpm.data.images import MOST_FILE_BYTES, UNREAD, UNREAD_FORMAT, BrokenFile, printable, read_bounded
from ddpm.data.stored import EncodedSource, classes_from_paths, classes_of, file_state

MOST_LABEL_BYTES = 20  # in a .cls file
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000


def open_zip(path: Path) -> EncodedSource:
    """Open every image in a zip file, in the order of their names.

    The classes are those in a `dataset.json`, or else the folders, below a folder that all images share.

    Raises UserError if the file is damaged, has overlapping entries, or holds several splits.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds of errors on a damaged archive
        raise UserError(f"{path} is not a readable .zip file: {error}") from error
    members = [member for member in archive.infolist() if _is_image(member.filename) and not member.is_dir()]
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise UserError(f"{path} is refused: its entries overlap, as in a zip bomb")
    members.sort(key=lambda member: member.filename)
    skipped = [(printable(m.filename), reason) for m in members if (reason := _zip_trouble(m))]
    members = [member for member in members if not _zip_trouble(member)]

    def read(index: int) -> bytes:
        try:
            with archive.open(members[index]) as file:
                return bytes(read_bounded(file, MOST_FILE_BYTES + 1))
        except Exception as error:
            raise BrokenFile(str(error) or type(error).__name__) from error

    def metadata(index: int) -> str:
        return f"{members[index].CRC} {members[index].file_size}"

    names = [printable(member.filename) for member in members]
    folder, manifest = _zip_manifest(archive)
    below = [name.removeprefix(folder) for name in names]
    return EncodedSource(names, read, metadata, *classes_of(below, manifest, _undivided(names, path)), skipped)


def _zip_manifest(archive: zipfile.ZipFile) -> tuple[str, bytes | None]:
    """Return the outermost `dataset.json` of an archive: its folder as a prefix, and its content."""
    found = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == MANIFEST]
    if not found:
        return "", None
    name = min(found, key=lambda name: name.count("/"))
    try:
        with archive.open(name) as file:
            return name.removesuffix(MANIFEST), bytes(read_bounded(file, MOST_FILE_BYTES))
    except Exception:  # it is damaged: the folders are the classes
        return "", None


def shard_paths(source: str, ending: str = ".tar") -> list[Path]:
    """Return the files that `set.tar`, `set-{000..099}.tar`, `set-*.tar` or a folder of them names, in order.

    Raises UserError if there are more than MOST_SHARDS.
    """
    path = user_path(source)
    if path.is_dir():
        return sorted(path.glob(f"*{ending}"))
    if path.exists():
        return [path]
    if braces := BRACES.search(source):
        first, last = int(braces[1]), int(braces[2])
        if last - first >= MOST_SHARDS:
            raise UserError(f"{source} names more than {MOST_SHARDS:,} shards")
        numbers = (str(number).zfill(len(braces[1])) for number in range(first, last + 1))
        return [user_path(source[: braces.start()] + number + source[braces.end() :]) for number in numbers]
    return sorted(Path(found) for found in glob.glob(str(path)) if found.endswith(ending))


@dataclass(frozen=True, slots=True)
class TarImage:
    """The place of an image in a shard, in bytes, and its class if there is a .cls file for it."""

    name: str
    offset: int
    size: int
    label: int | None


def open_tar(shards: list[Path]) -> EncodedSource:
    """Index plain tar shards, so that each image is read directly.

    Members with the same name up to the first dot are one sample (WebDataset): `0001.jpg` and its class `0001.cls`.
    Without .cls files, the folders are the classes.

    Raises UserError if a shard is missing, or the shards hold several splits.
    """
    skipped: list[tuple[str, str]] = []
    names, labels = [], []
    where = []
    for number, shard in enumerate(shards):
        for image in scan_tar(shard, lambda name, reason: skipped.append((name, reason))):
            names.append(image.name)
            labels.append(image.label)
            where.append((number, image.offset, image.size))
    states = [file_state(shard) for shard in shards]
    table = np.array(where, np.int64).reshape(-1, 3)  # 24 bytes per image; tuples would take 150

    def read(index: int) -> bytes:
        number, offset, size = table[index].tolist()
        return read_tar_image(shards[number], offset, size)

    def metadata(index: int) -> str:
        number, offset, size = table[index].tolist()
        return f"{states[number]} {offset} {size}"

    below = _undivided(names, shards[0])
    if names and None not in labels:
        return EncodedSource(names, read, metadata, np.array(labels, np.int64), skipped=skipped)
    return EncodedSource(names, read, metadata, *classes_from_paths(below), skipped=skipped)


def scan_tar(shard: Path, skip: Callable[[str, str], None]) -> Iterator[TarImage]:
    """Yield the images of one shard in order, from the headers alone. Call `skip(name, reason)` for damaged ones."""
    sample: list[tuple[str, int, int]] = []
    key, label = None, None
    for member in _members(shard, skip):
        name = printable(member.name)
        if _key(name) != key:
            yield from (TarImage(*image, label) for image in sample)
            sample, key, label = [], _key(name), None
        if name.endswith(".cls"):
            label = _class_number(shard, member)
        elif _is_image(name):
            reason = _tar_trouble(member, shard)
            if reason:
                skip(f"{shard.name}/{name}", reason)
            else:
                sample.append((name, member.offset_data, member.size))
    yield from (TarImage(*image, label) for image in sample)


def read_tar_image(shard: Path, offset: int, size: int) -> bytes:
    """Return the encoded bytes of one indexed image. Raises BrokenFile."""
    try:
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise BrokenFile(error.strerror or str(error)) from error


def _members(shard: Path, skip: Callable[[str, str], None]) -> Iterator[tarfile.TarInfo]:
    last = -1
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if member.offset <= last:
                    raise tarfile.ReadError("its headers are cyclic")
                last = member.offset
                yield member
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if not end or any(end):  # an undamaged archive ends in blocks of zeros
                skip(shard.name, f"it is damaged or cut off at byte {archive.offset:,}")
    except FileNotFoundError as error:
        raise UserError(f"there is no shard {shard}") from error
    except Exception as error:  # damaged headers raise many kinds of errors
        reason = str(error) or type(error).__name__
        skip(shard.name, "it is not a plain .tar file; decompress it first if it is compressed" if last < 0 else reason)


def _is_image(name: str) -> bool:
    """Whether a path is that of an image and no part of it is hidden. `..` is refused later, with a reason."""
    hidden = any(is_hidden(part) and part != ".." for part in PurePosixPath(name).parts)
    return is_image(name.rsplit("/", 1)[-1]) and not hidden


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _zip_trouble(member: zipfile.ZipInfo) -> str | None:
    if _leaves(member.filename):
        return "its name leads out of the archive"
    if member.filename.lower().endswith(UNREAD):
        return UNREAD_FORMAT
    if member.flag_bits & 1:
        return "it is encrypted"
    if member.file_size > MOST_FILE_BYTES:
        return f"it unpacks to more than {MOST_FILE_BYTES:,} bytes"
    return None


def _tar_trouble(member: tarfile.TarInfo, shard: Path) -> str | None:
    if _leaves(member.name):
        return "its name leads out of the archive"
    if member.name.lower().endswith(UNREAD):
        return UNREAD_FORMAT
    if not member.isreg() or member.sparse is not None:
        return "it is not a regular file"
    if not 0 <= member.size <= MOST_FILE_BYTES:
        return f"its size is not in 0..{MOST_FILE_BYTES:,} bytes"
    if member.offset_data + member.size > os.path.getsize(shard):
        return "the archive ends before it does"
    return None


def _class_number(shard: Path, member: tarfile.TarInfo) -> int | None:
    if not member.isreg() or not 0 < member.size <= MOST_LABEL_BYTES:
        return None
    text = read_tar_image(shard, member.offset_data, member.size).strip()
    return int(text) if text.isdigit() else None


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _undivided(names: list[str], archive: Path) -> list[str]:
    """Remove the folder that all names share: an archive of `flowers/` has `flowers/rose/` and `flowers/lily/`.

    Raises UserError if train/, test/ and the like are left: they would be read as classes.
    """
    names = [name.removeprefix("./") for name in names]
    while names and all("/" in name for name in names) and len(_tops(names)) == 1:
        names = [name.split("/", 1)[1] for name in names]
    splits = sorted(top for top in _tops(names) if top.lower() in SPLIT_FOLDERS)
    if len(splits) > 1:
        found = ", ".join(splits)
        raise UserError(f"{archive} holds several splits ({found}): unpack it and name the folder, or pack each alone")
    return names


def _tops(names: list[str]) -> set[str]:
    """Return the first part of every path: a folder, or the name of a file that is in none."""
    return {name.split("/", 1)[0] for name in names}
