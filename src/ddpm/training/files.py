"""Writing so that nothing is ever half there: beside, flushed to the disk, renamed."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ddpm.errors import RunStopped
from ddpm.files import NO_SPACE, sync
from ddpm.interop.folder import save_tensors


@contextlib.contextmanager
def writing(what: str, kept: Callable[[], str]) -> Iterator[None]:
    """Turn a disk that cannot be written into one line: what was being written, and what is `kept` now."""
    try:
        yield
    except SafetensorError as error:  # safetensors hides the system's error inside its own
        raise RunStopped(f"could not write {what}: {error}; {kept()}") from error
    except OSError as error:
        reason = "no space left on the disk" if error.errno in NO_SPACE else error.strerror or str(error)
        raise RunStopped(f"could not write {what}: {reason}; {kept()}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a small file by one whole new one."""
    beside = path.with_name(f".{path.name}.writing")
    try:
        with beside.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, on the disk when this returns."""
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    sync(path)


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
