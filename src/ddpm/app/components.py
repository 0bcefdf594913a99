"""Gradio components of the page, and the checks on everything a visitor sends."""

import base64
import functools
import inspect
import io
import json
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, TypeVar

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.app.uploads import MOST_BYTES, read_address, read_fitted
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.pixels import make_grid, png_text, to_pillow, to_uint8
from ddpm.model import Model
from ddpm.plotting.animation import Frame
from ddpm.samplers.algorithms import Callback, Step

ASSETS = Path(__file__).parent.parent / "assets"
MOST_SEED = 2**53 - 1  # the largest integer that JavaScript represents exactly


def bounded(name: str, value: float | None, low: int, high: int) -> int:
    """Return a whole number within its bounds, both included; raise UserError otherwise."""
    if value is None or value != value or value != int(value) or not low <= value <= high:
        given = "empty" if value is None else f"{value:g}"
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {given}")
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


_at_work: dict[Thread, Event] = {}


def live(work: Callable[[Callback], T]) -> Iterator[Step | T]:
    """Run `work(callback)` in a thread; yield the newest `Step` a few times per second, then the result of `work`.

    Closing the iterator stops the work at its next step, without waiting for it.
    """
    newest: queue.Queue[Step] = queue.Queue(maxsize=1)
    outcome: Future[T] = Future()
    stop = Event()

    def callback(step: Step) -> None:
        if stop.is_set():
            raise Cancelled
        with suppress(queue.Empty):
            newest.get_nowait()  # not shown in time: replace it with the newer step
        newest.put(step)

    def run() -> None:
        try:
            outcome.set_result(work(callback))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            del _at_work[thread]

    # a daemon, because the interpreter would wait for any other thread when it exits
    thread = Thread(target=run, name="sampling", daemon=True)
    _at_work[thread] = stop
    thread.start()
    try:
        while not outcome.done():
            with suppress(queue.Empty):
                yield newest.get(timeout=PAUSE / 4)
                wait([outcome], timeout=PAUSE)
        if isinstance(outcome.exception(), Cancelled):
            raise RunStopped("the server has ended")
        yield outcome.result()
    finally:
        stop.set()


def stop_all(patience: float) -> None:
    """Stop everything that `live` runs, and wait up to `patience` seconds for it."""
    at_work = dict(_at_work)
    for stop in at_work.values():
        stop.set()
    deadline = time.monotonic() + patience
    for thread in at_work:
        if thread.is_alive():  # one that has not started yet ends at its first step
            thread.join(max(0, deadline - time.monotonic()))


EXACT_PIXELS = 64 * 64


def address(image: Image.Image, kind: str = "png", **more: Any) -> str:
    """Return a picture in a `data:` address: `png` is exact, `webp` only if the picture is small."""
    buffer = io.BytesIO()
    told = {"pnginfo": png_text(**more)} if kind == "png" else {}
    image.save(buffer, format=kind, quality=90, **told, lossless=image.width * image.height <= EXACT_PIXELS)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(images: Tensor, columns: int | None = None) -> str:
    """Return images (N, C, H, W) in [-1, 1] as the address of one picture, with transparent gaps between them."""
    gap = 1 if len(images) > 1 else 0
    picture = to_pillow(make_grid(images, columns, gap))
    images_only = 255 - make_grid(torch.full_like(images[:, :1], -1), columns, gap)
    picture.putalpha(to_pillow(images_only))
    return address(picture)


def figure(source: str, alt: str, caption: str = "") -> str:
    """Return the HTML of a picture with a caption; `caption` is HTML."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img class="pixels" src="{source}" alt="{escape(alt)}">{below}</figure>'


TITLES = {"x_t": "x<sub>t</sub>", "predicted x_0": "predicted x<sub>0</sub>"}  # alternative text: caption
Shot = tuple[Sequence[Image.Image], str]  # the pictures of one moment, and its words


def shots(frames: Sequence[Frame]) -> list[Shot]:
    """Return the frames of a process as shots: x_t, and x_0 where there is one."""
    found: list[Shot] = []
    for frame in frames:
        snr = "infinite" if frame.log_snr == np.inf else f"{np.exp(frame.log_snr):.2g}"
        grids = [to_pillow(grid) for grid in (frame.x_t, frame.x_0) if grid is not None]
        found.append((grids, "the data" if frame.t < 0 else f"t = {frame.t:.0f}, SNR {snr}"))
    return found


def tile(pixels: Tensor, caption: str, file: str, name: str = "", **more: Any) -> str:
    """Return the HTML of an image, uint8 (C, H, W), in a gallery: a button that enlarges it; `name` is in a corner."""
    words, corner = escape(caption), f"<span>{escape(name)}</span>" if name else ""
    return (
        f'<button type="button" class="tile" data-caption="{words}" data-file="{file}" aria-label="Enlarge {words}">'
        f'<img class="pixels" src="{address(to_pillow(pixels), **more)}" alt="">{corner}</button>'
    )


def film(shots: Sequence[Shot], *, last: bool = False) -> str:
    """Return the HTML of shots with a slider through them, at the first or the last."""
    addresses = [[address(image, "webp") for image in images] for images, _ in shots]
    told = [{"pictures": pictures, "words": words} for pictures, (_, words) in zip(addresses, shots, strict=True)]
    place = len(shots) - 1 if last else 0
    words = shots[place][1]
    titles = TITLES if len(addresses[place]) > 1 else {words: ""}
    pictures = "".join(figure(source, *title) for source, title in zip(addresses[place], titles.items(), strict=True))
    return (
        f'<div class="film" data-frames="{escape(json.dumps(told))}"><div class="pair">{pictures}</div>'
        f'<label><span class="film-words">{escape(words)}</span><input type="range" min="0" '
        f'max="{len(told) - 1}" value="{place}" aria-label="moment"></label></div>'
    )


def picture_pad(model: Model, name: str, label: str, *, marks: bool = False, filled: int = 0) -> gr.HTML:
    """Create a pad of the model's size: choose, drop or draw a picture; with `marks`, also mark a part of it.

    Its value is JSON with two `data:` addresses, `image` and `mask`. `filled`: number of the example it begins with.
    """

    def fit(data: str) -> dict[str, str]:
        """Bring a file to the model's size."""
        try:
            source = read_address(data)
            if len(source) > MOST_BYTES:
                raise UserError(f"the upload cannot be used: it is larger than {MOST_BYTES // 2**20} MB")
            fitted = read_fitted(source, model.image_shape, preprocessing=model.preprocessing)
        except UserError as error:
            return {"error": as_sentence(error)}
        return {"image": address(to_pillow(to_uint8(fitted))), "note": f"Resized to {width}×{height}, as in training."}

    channels, height, width = model.image_shape
    options = {
        "name": name,
        "label": label,
        "width": width,
        "height": height,
        "grey": channels < 3,
        "marks": marks,
        "filled": filled,
        "limit": MOST_BYTES,
        "examples": examples(model),
    }
    return gr.HTML(
        "",
        label=label,
        html_template='<div class="pad"></div>',
        js_on_load=f"ddpm.pad(element.querySelector('.pad') ?? element, props, server, {json.dumps(options)});",
        server_functions=[fit],
    )


def knows_digits(model: Model) -> bool:
    """Whether this is a model of handwritten digits, by its classes and its size."""
    return model.image_shape == (1, 28, 28) and model.class_names == list("0123456789")


def examples(model: Model) -> list[str]:
    """Return bundled pictures for a model of digits; for another, the page offers the model's own samples."""
    if not knows_digits(model):
        return []
    with Image.open(ASSETS / "examples.png") as strip:
        return [address(strip.crop((left, 0, left + 28, 28))) for left in range(0, strip.width, 28)]


def program_file(label: str) -> gr.Image:
    """Create an upload that only programs use. Gradio's own would decode the file before its header is checked."""
    image = gr.Image(label=label, type="filepath", visible=False)
    return _own_files(image, lambda payload: None if payload is None else payload.path)


def choice(known: Sequence[str], value: str, label: str, info: str = "", **options: Any) -> gr.HTML:
    """Create a choice as the browser's own list, for keyboards and phones. A program can send any text."""
    told = json.dumps({"label": label, "info": info, "choices": list(known)})
    return gr.HTML(
        value,
        label=label,
        html_template='<div class="choice"></div>',
        js_on_load=f"ddpm.choice(element, props, trigger, watch, {told}); // 'change'",
        **options,
    )


def class_field(model: Model, **options: Any) -> gr.HTML:
    """Create the choice of a class: none by default, or the first if the model needs one; hidden without classes."""
    known = classes(model)
    return choice(known or [NO_CLASS], known[0] if known else NO_CLASS, "Class", visible=bool(known), **options)


def status_line(text: str) -> gr.HTML:
    """Create the line that says what goes on; screen readers read it out."""
    template = '<div class="status" role="status" aria-live="polite">${value}</div>'
    return gr.HTML(text, html_template=template, js_on_load=None, elem_classes="status-block")


def running(text: str) -> str:
    """Return the HTML of a status during a run. It turns the button of its room to Stop, and is not read out."""
    return f'<span class="running" aria-live="off">{escape(text)}</span>'


def pace(step: Step, began: float) -> str:
    """Say how far a run is that began at `time.monotonic()` = `began`."""
    done, left = step.index + 1, step.steps - step.index - 1
    seconds = (time.monotonic() - began) / done * left
    return running(f"Step {done} of {step.steps}" + (f", {seconds:.0f} s left" if seconds >= 1 else ""))


def live_pictures(step: Step, log_snr: float, columns: int | None = None) -> str:
    """Return the HTML of x_t and the predicted x_0, side by side, and how far the run is."""
    snr = "infinite" if log_snr == np.inf else f"{np.exp(log_snr):.2g}"
    noisy = figure(sheet(step.x_t, columns), "x_t", f"{TITLES['x_t']}, t = {step.t:.0f}, SNR {snr}")
    clean = figure(sheet(step.x_0, columns), *list(TITLES.items())[1])
    bar = f'<progress max="{step.steps}" value="{step.index + 1}" aria-label="steps done"></progress>'
    return f'<div class="pair">{noisy}{clean}</div>{bar}'


def buttons(text: str) -> tuple[gr.Button, gr.Button]:
    """Create a button and the Stop that takes its place during a run."""
    with gr.Row(elem_classes="action"):
        start = gr.Button(text, variant="primary", elem_classes="start", min_width=120)
        stop = gr.Button("Stop", elem_classes="stop", min_width=120)
    return start, stop


def code_boxes() -> tuple[gr.HTML, gr.HTML]:
    """Create the boxes with the command and the program that do the same as the page did."""

    def box(label: str) -> gr.HTML:
        script = f"ddpm.code(element, props, watch, {json.dumps(label)});"
        return gr.HTML("", label=label, html_template='<div class="code"></div>', js_on_load=script, min_width=280)

    with gr.Accordion("The same from the command line and in Python", open=False), gr.Row():
        return box("Command"), box("Python")


WAITING = running("Waiting for the model …")


def connect(
    buttons: tuple[gr.Button, gr.Button], function: Callable, inputs: list, outputs: list, *, api_name: str, before=None
) -> None:
    """Run `function` when the first button is pressed, until the second is.

    Args:
        function: a generator; the first thing that it yields for every output is the status.
        before: (inputs, outputs, JavaScript) of what the browser does first.
    """
    (start, stop), status = buttons, outputs[0]
    own, changed, script = before or ([], [], "() => []")
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    script = f"(...all) => [{json.dumps(WAITING)}, ...({script})(...all)]"
    pressed = start.click(None, own, [status, *changed], js=script, **quiet)
    run = pressed.then(
        show_user_errors(function),
        inputs,
        outputs,
        api_name=api_name,
        concurrency_id="model",
        trigger_mode="multiple",  # otherwise a press just after Stop is lost, because Gradio still counts the old run
        show_progress="minimal",
        show_progress_on=status,
    )
    run.failure(None, None, status, js="() => ddpm.reason()", **quiet)
    stopped = stop.click(None, None, None, cancels=run, **quiet)
    stopped.then(None, None, status, js="() => ddpm.stopped()", **quiet)


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


def as_sentence(error: Exception) -> str:
    """Return the message of an error as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:] + "."


def _shown(error: Exception) -> gr.Error:
    return gr.Error(as_sentence(error), duration=12, print_exception=False, title="That did not work")
