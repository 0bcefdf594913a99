"""What a tab shows of a run: its status, its pictures while it lasts, its result, files to save, and its code."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import gradio as gr
from PIL import Image

from ddpm.app.uploads import MOST_BYTES, read_address
from ddpm.common.errors import UserError
from ddpm.common.pixels import read_origin


def status_line(text: str) -> gr.HTML:
    """Create the line that says what goes on; screen readers read it out."""
    template = '<div class="status" role="status" aria-live="polite">${value}</div>'
    return gr.HTML(text, html_template=template, js_on_load=None, elem_classes="status-block")


def running(text: str) -> str:
    """Return the HTML of a status during a run. It turns the button of its room to Stop, and is not read out."""
    return f'<span class="running" aria-live="off">{escape(text)}</span>'


QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def origin(data: str) -> dict[str, Any]:
    """Return the options of a file that the page wrote, given as a `data:` address, and the number of its images."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        try:
            file.write_bytes(read_address(data)[:MOST_BYTES])
            told = read_origin(file)
        except (UserError, RecursionError, BadZipFile, Image.DecompressionBombError):  # whatever somebody sends
            return {}
    return {name: told[name] for name in ("options", "images") if name in told}


class Outcome:
    """What a run shows. Its components are the outputs of the run, in this order.

    The browser keeps what the last run gave, with its files and its code. It shows them again after a run that was
    refused, because the files and the code next to a picture must be its own. What a stopped run had drawn stays.

    Args:
        name: of the endpoint.
        hint: the status before the first run.
        saves: the words of the links to the files that a run gives.
        moves: whether there are pictures while a run lasts.
        before: the HTML that is seen before the first run.
        classes: the choices of the class field, for a gallery whose earlier results and settings can be brought back.
        model: the name of the model, by which the browser keeps these results.
    """

    def __init__(
        self,
        name: str,
        hint: str,
        saves: Sequence[str] = (),
        *,
        moves: bool = True,
        before: str = "",
        classes: Sequence[str] | None = None,
        model: str = "",
    ):
        kept = {"key": f"ddpm/{model}/{name}/results", "limit": MOST_BYTES} if classes else {}
        told = json.dumps(kept | {"name": name, "saves": saves, "classes": classes})
        self.name = name
        self.status = status_line(hint)
        self.moving = [gr.HTML(elem_classes="moving")] if moves else []
        self.result = gr.HTML(
            before,
            html_template='<div class="result">${value}</div>',
            js_on_load=f"ddpm.result(element, props, watch, server, {told});",
            server_functions=[origin] if classes else [],
            elem_classes="gallery" if classes else "",
        )
        # what a program gets; on the page there are links, which stay with their result
        self.files = [gr.DownloadButton(words, visible=False) for words in saves]
        self.boxes: list[gr.HTML] = []

    def code(self) -> None:
        """Create the boxes with the command and the program that do the same as the page did."""
        with gr.Accordion("Command line and Python", open=False), gr.Row():
            for label in ("Command", "Python"):
                script = f"ddpm.code(element, {json.dumps(self.name)}, {json.dumps(label)});"
                self.boxes.append(
                    gr.HTML("", label=label, html_template='<div class="code"></div>', js_on_load=script, min_width=280)
                )

    @property
    def outputs(self) -> list[Any]:
        """The status, moving pictures (if there are), the result, the files and the code."""
        return [self.status, *self.moving, *self.given]

    @property
    def given(self) -> list[Any]:
        """What only a finished run fills: the result, the files and the code."""
        return [self.result, *self.files, *self.boxes]

    @property
    def unfinished(self) -> list[Any]:
        """The values of all that a run has not given yet.

        They are not gr.skip(): each one would leave a component behind in the session.
        """
        return ["", *[None] * len(self.files), *[""] * len(self.boxes)]

    def keep(self, run: Any) -> None:
        """Let the browser keep what a run has given, or show what it kept if this one gave nothing."""
        script = f"(...all) => ddpm.finished({json.dumps(self.name)}, ...all)"
        run.success(None, [self.status, *self.given], self.status, js=script, **QUIET)
        script = f"() => ddpm.refused({json.dumps(self.name)})"
        run.failure(None, None, self.status, js=script, **QUIET)
