"""Gradio's components as this page needs them, and errors as its reader should see them."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from ddpm.app.functions.classes import NO_CLASS, classes
from ddpm.errors import RunStopped, UserError
from ddpm.model import Model


def upload(label: str, **options: Any) -> gr.Image:
    """An image to upload, handed on as a path: Gradio's own would decode it before anybody looked at its header."""
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
    """The class to restore or edit as: none, or the first where the model must have one; hidden where it knows none."""
    known = classes(model)
    return gr.Dropdown(
        known,
        value=known[0] if known else NO_CLASS,
        label="Class",
        visible=bool(known),
        allow_custom_value=True,  # so that what programs send is judged, and refused in words
    )


def mask_editor(label: str, side: int, colour: str, **options: Any) -> gr.ImageEditor:
    """A brush over an image of about `side` pixels; handed on are the painted layers, still encoded."""
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
    """The component with our `preprocess`, and fetching nothing from elsewhere for anybody.

    Set on the instance: for a subclass Gradio would write a stub file beside this one.
    """
    to_cache = component.async_move_resource_to_block_cache

    async def own_file_to_cache(path: Any) -> str | None:
        if str(path).lower().startswith(("http:", "https:", "data:")):
            raise gr.Error("Send the file itself, not its address.", print_exception=False)
        return await to_cache(path)

    component.preprocess = preprocess
    component.async_move_resource_to_block_cache = own_file_to_cache
    return component


class Outbox:
    """A folder for what one answer holds, gone when the answer has been given.

    Gradio copies a file whole or not at all. An image it would write itself, and two equal answers at once the same
    file, while a third reads it.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()
        self._count = 0

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def put(self, image: Image.Image, name: str = "image") -> str:
        """Write a picture; the path for Gradio."""
        self._count += 1
        path = self.folder / str(self._count) / f"{name}.png"
        path.parent.mkdir()
        image.save(path)
        return str(path)


def told(function: Callable) -> Callable:
    """The handler, its `UserError` shown on the page as the one line it is."""
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
