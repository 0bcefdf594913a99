"""Gradio components of the page, and the checks on everything a visitor sends."""

import functools
import inspect
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, TypeVar

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.pixels import to_float, to_pillow
from ddpm.data.config import Preprocessing
from ddpm.data.images import BrokenFile, decode, resize_to, to_tensor
from ddpm.model import Model
from ddpm.restoration.tasks import marked
from ddpm.samplers.algorithms import Callback, Step

MOST_SEED = 2**53 - 1  # the largest integer that JavaScript represents exactly


def bounded(name: str, value: float | None, low: int, high: int) -> int:
    """Return a whole number within its bounds, both included; raise UserError otherwise."""
    if value is None or value != value or value != int(value) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {value}")
    return int(value)


NO_CLASS = "no class"


def classes(model: Model) -> list[str]:
    """Return the choices of a class field; empty if the model has no classes."""
    return [NO_CLASS, *(model.class_names or [])] if model.null_label is not None else list(model.class_names or [])


def as_labels(label: str) -> str | None:
    """Convert a choice to the labels that `restore` and `Editor` take."""
    return None if label == NO_CLASS else label


T = TypeVar("T")
PAUSE = 0.2  # seconds between two updates


class Cancelled(Exception):
    """Raised inside a sampler after its iterator was closed."""


def live(work: Callable[[Callback], T]) -> Iterator[Step | T]:
    """Run `work(callback)` in a thread; yield the newest `Step` a few times per second, then the result of `work`.

    Closing the iterator stops the work at its next step, without waiting for it.
    """
    newest: queue.Queue[Step] = queue.Queue(maxsize=1)
    stop = Event()

    def callback(step: Step) -> None:
        if stop.is_set():
            raise Cancelled
        with suppress(queue.Empty):
            newest.get_nowait()  # not shown in time: replace it with the newer step
        newest.put(step)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
    try:
        future = pool.submit(work, callback)
        while not future.done():
            wait([future], timeout=PAUSE)
            with suppress(queue.Empty):
                yield newest.get_nowait()
        yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=False)


MOST_BYTES = 20 * 2**20  # of one upload
SHOWN_SIDE = 448  # pixels; small images are enlarged towards this size by a whole factor
PAINTED_FRACTION = 0.25  # of an image pixel that the brush must cover


def read_upload(
    source: str | Path | bytes | None, channels: int, what: str = "the upload", background=255
) -> Image.Image:
    """Read an uploaded file as a Pillow image of 1 to 4 channels.

    The header is checked before any pixel is decoded. An animation gives its first frame; transparent pixels get the
    colour `background`. Raises UserError with the reason if the file cannot be used.
    """
    if source is None:
        raise UserError(f"{what} is missing: choose an image first")
    try:
        data = source if isinstance(source, bytes) else _bytes(Path(source))
        return decode(data, channels, background, smallest=1)
    except BrokenFile as error:
        raise UserError(f"{what} cannot be used: {error}") from error
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from error


def read_fitted(
    source: str | Path | None,
    shape: Sequence[int],
    what: str = "the upload",
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Read an uploaded file as (C, H, W) in [-1, 1], resized to `shape` as the model's training images were."""
    channels, height, width = shape
    how, background = preprocessing or Preprocessing()
    image = read_upload(source, channels, what, background)
    return to_float(to_tensor(resize_to(image, (height, width), how, background)))


def read_mask(layers: Sequence[str | bytes], size: tuple[int, int]) -> Tensor:
    """Combine the layers of a mask, each read by the rule of `marked`: bool (H, W), True where pixels are lost."""
    lost = torch.zeros(size, dtype=torch.bool)
    for layer in layers:
        covered = to_pillow(255 * marked(to_tensor(read_upload(layer, 2, "the mask")))[None].byte())
        fraction = np.asarray(covered.resize((size[1], size[0]), Image.Resampling.BOX)) / 255
        lost |= torch.from_numpy(fraction >= PAINTED_FRACTION)
    return lost


def enlarged(pixels: Tensor, side: int = SHOWN_SIDE) -> Image.Image:
    """Convert uint8 (C, H, W) to a picture, enlarged towards `side` by a whole factor, so that pixels stay square."""
    image = to_pillow(pixels)
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BrokenFile(f"it is larger than {MOST_BYTES // 2**20} MB")
    return data


def upload(label: str, **options: Any) -> gr.Image:
    """Create an upload that passes on a path. Gradio's own would decode the file before its header is checked."""
    image = gr.Image(
        label=label,
        type="filepath",
        buttons=[],
        sources=["upload", "clipboard"],
        elem_classes="upload",
        height=200,
        **options,
    )
    return _own_files(image, lambda payload: None if payload is None else payload.path)


def class_field(model: Model) -> gr.Dropdown:
    """Create the choice of a class: none by default, or the first if the model needs one; hidden without classes."""
    known = classes(model)
    return gr.Dropdown(
        known,
        value=known[0] if known else NO_CLASS,
        label="Class",
        visible=bool(known),
        allow_custom_value=True,  # programs can send any text; our own check refuses it with a message
    )


def mask_editor(label: str, side: int, colour: str, **options: Any) -> gr.ImageEditor:
    """Create a brush over an image of about `side` pixels. It passes on the painted layers, still encoded."""
    thickness = side // 9
    editor = gr.ImageEditor(
        label=label,
        sources=[],
        transforms=[],
        layers=False,
        buttons=[],
        format="png",
        canvas_size=(side, side),
        brush=gr.Brush(default_size=thickness, colors=[colour], default_color=colour, color_mode="fixed"),
        eraser=gr.Eraser(default_size=thickness),
        **options,
    )

    def layers(payload: Any) -> list[str | bytes]:
        if payload is None:
            return []
        if payload.id is None:
            return [layer.path for layer in payload.layers]
        painted = editor.blob_storage.pop(payload.id, None)
        return [] if painted is None else [layer for layer in painted.layers if layer]

    return _own_files(editor, layers)


def _own_files(component: Any, preprocess: Callable[[Any], Any]) -> Any:
    """Give the component our `preprocess`, and keep it from fetching files from other hosts.

    Both are set on the instance, because Gradio writes a stub file next to the module of any subclass.
    """
    to_cache = component.async_move_resource_to_block_cache

    async def own_file_to_cache(path: Any) -> str | None:
        if str(path).lower().startswith(("http:", "https:", "data:")):
            raise gr.Error("Send the file itself, not its address.", print_exception=False)
        return await to_cache(path)

    component.preprocess = preprocess
    component.async_move_resource_to_block_cache = own_file_to_cache
    return component


class TempImages:
    """A temporary folder for the images of one response, removed after the response.

    Gradio copies files atomically, but writes image objects itself: two equal responses at once would write the same
    file while a third request reads it.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()
        self._count = 0

    def __enter__(self) -> "TempImages":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def put(self, image: Image.Image, name: str = "image") -> str:
        """Write a picture and return its path."""
        self._count += 1
        path = self.folder / str(self._count) / f"{name}.png"
        path.parent.mkdir()
        image.save(path)
        return str(path)


def show_user_errors(function: Callable) -> Callable:
    """Wrap a handler so that its `UserError` or `RunStopped` appears on the page as one line."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*arguments: Any) -> Any:
            try:
                yield from function(*arguments)
            except (UserError, RunStopped) as error:
                raise _shown(error) from error

        return generator

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (UserError, RunStopped) as error:
            raise _shown(error) from error

    return plain


def _shown(error: Exception) -> gr.Error:
    text = str(error)
    return gr.Error(text[:1].upper() + text[1:] + ".", duration=12, print_exception=False, title="That did not work")
