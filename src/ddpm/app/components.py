"""Gradio components of the page, and the checks on everything a visitor sends."""

import base64
import io
import json
import math
import shlex
import zipfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.app.press import as_sentence
from ddpm.app.uploads import MOST_BYTES, read_address, read_fitted, read_upload
from ddpm.common.errors import UserError
from ddpm.common.pixels import make_grid, origin_of, png_text, to_pillow, to_uint8
from ddpm.data.config import data_section
from ddpm.model import Model, SamplingOptions
from ddpm.plotting.animation import Frame
from ddpm.samplers.algorithms import Step

ASSETS = Path(__file__).parent.parent / "assets"
MOST_CELLS = 64  # of a grid
DIGITS = ("digits", "mnist")  # the sources of handwritten digits
MOST_SEED = 2**53 - 1  # the largest integer that JavaScript represents exactly


def bounded(name: str, value: float | None, low: int, high: int) -> int:
    """Return a whole number within its bounds, both included; raise UserError otherwise."""
    if value is None or value != value // 1 or not low <= value <= high:
        given = "empty" if value is None else f"{value:.0f}" if value == value // 1 else f"{value:g}"
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {given}")
    return int(value)


NO_CLASS = "no class"


def classes(model: Model) -> list[str]:
    """Return the choices of a class field; empty if the model has no classes."""
    return [NO_CLASS, *(model.class_names or [])] if model.null_label is not None else list(model.class_names or [])


def as_labels(label: str) -> str | None:
    """Convert a choice to the labels that `restore` and `Editor` take."""
    return None if label == NO_CLASS else label


EXACT_PIXELS = 64 * 64


def address(image: Image.Image, kind: str = "png", **more: Any) -> str:
    """Return a picture in a `data:` address: `png` is exact, `webp` only if the picture is small."""
    buffer = io.BytesIO()
    told = {"pnginfo": png_text(**more)} if kind == "png" else {}
    image.save(buffer, format=kind, quality=90, **told, lossless=image.width * image.height <= EXACT_PIXELS)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def sheet(images: Tensor, columns: int | None = None) -> str:
    """Return images (N, C, H, W) in [-1, 1] as the address of one picture, with transparent gaps between them."""
    columns, _, gap = sheet_layout(len(images), columns)
    picture = to_pillow(make_grid(images, columns, gap))
    images_only = 255 - make_grid(torch.full_like(images[:, :1], -1), columns, gap)
    picture.putalpha(to_pillow(images_only))
    return address(picture)


def sheet_layout(number: int, columns: int | None = None) -> tuple[int, int, int]:
    """Return the columns and rows of a sheet, as square as possible, and the pixels between and around its images."""
    columns = columns or math.ceil(math.sqrt(number))
    return columns, math.ceil(number / columns), 1 if number > 1 else 0


def figure(source: str, alt: str, caption: str = "") -> str:
    """Return the HTML of a picture with a caption; `caption` is HTML."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img class="pixels" src="{source}" alt="{escape(alt)}">{below}</figure>'


def origin(model: Model, command: str, sampling: SamplingOptions, **more: Any) -> dict[str, Any]:
    """Return the origin that a command, in lines for a person to read, writes into the same files."""
    line = shlex.join(shlex.split(command.replace("\\\n", "")))
    return origin_of(line, model.weights_hash, options=sampling.as_dict(), **more)


TITLES = {  # alternative text: caption
    "x_t": "x<sub>t</sub>: noise that becomes less",
    "predicted x_0": "x<sub>0</sub>: what the network expects",
}
Shot = tuple[Sequence[Image.Image], str]  # the pictures of one moment, and its words


def moment(t: float, log_snr: float) -> str:
    """Say where in the process an image is: its timestep, and how much of it is signal."""
    snr = "infinite" if log_snr == np.inf else f"{np.exp(log_snr):.2g}"
    return "the image itself" if t < 0 else f"t = {t:.0f}, signal to noise (SNR) {snr}"


def shots(frames: Sequence[Frame]) -> list[Shot]:
    """Return the frames of a process as shots: x_t, and x_0 where there is one."""
    found: list[Shot] = []
    for frame in frames:
        grids = [to_pillow(grid) for grid in (frame.x_t, frame.x_0) if grid is not None]
        found.append((grids, moment(frame.t, frame.log_snr)))
    return found


def tile(pixels: Tensor, caption: str, file: str, name: str = "", shown: str = "", **more: Any) -> str:
    """Return the HTML of an image, uint8 (C, H, W), in a gallery: a button that enlarges it; `name` is in a corner.

    shown: the address of what is seen in its place; what is saved is the image.
    """
    words, corner = escape(caption), f"<span>{escape(name)}</span>" if name else ""
    saved = address(to_pillow(pixels), **more)
    other = f' data-saved="{saved}"' if shown else ""
    return (
        f'<button type="button" class="tile"{other} data-caption="{words}" data-file="{file}" '
        f'aria-label="Enlarge {words}">'
        f'<img class="pixels" src="{shown or saved}" alt="">{corner}</button>'
    )


def write_png(archive: zipfile.ZipFile, name: str, image: Image.Image, **more: Any) -> None:
    """Write a picture into a ZIP as a PNG that says how it was made, inside `made_by`; `more` is of this picture."""
    with archive.open(name, "w") as entry:
        image.save(entry, format="png", pnginfo=png_text(**more))


def film(shots: Sequence[Shot], *, last: bool = False, tiles: bool = False) -> str:
    """Return the HTML of shots with a slider through them, at the first or the last.

    tiles: it has no pictures of its own, but shows its moments on the tiles before it, and can be played.
    """
    addresses = [[address(image, "webp") for image in images] for images, _ in shots]
    told = [{"pictures": pictures, "words": words} for pictures, (_, words) in zip(addresses, shots, strict=True)]
    place = len(shots) - 1 if last else 0
    words = shots[place][1]
    titles = TITLES if len(addresses[place]) > 1 else {words: ""}
    pictures = "".join(figure(source, *title) for source, title in zip(addresses[place], titles.items(), strict=True))
    before = (
        '<button type="button" class="small play">Play</button>' if tiles else f'<div class="pair">{pictures}</div>'
    )
    return (
        f'<div class="film{" on-tiles" * tiles}" data-frames="{escape(json.dumps(told))}">{before}'
        f'<label><span class="film-words">{escape(words)}</span><input type="range" min="0" '
        f'max="{len(told) - 1}" value="{place}" style="--range_progress:{100 * last}%" aria-label="moment"></label>'
        "</div>"
    )


def picture_pad(model: Model, name: str, label: str, run: str, *, marks: bool = False, filled: int = 0) -> gr.HTML:
    """Create a pad of the model's size: choose, drop or draw a picture; with `marks`, also mark a part of it.

    Its value is JSON with two `data:` addresses, `image` and `mask`, and the class of an example, `label`.
    `filled`: number of the example it begins with. `run`: the outcome that is of another picture when this one changes.
    """

    def fit(data: str) -> dict[str, Any]:
        """Bring a file to the model's size, or offer the images of a grid."""
        try:
            source = read_address(data)
            if len(source) > MOST_BYTES:
                raise UserError(f"the upload cannot be used: it is larger than {MOST_BYTES // 2**20} MB")
            if found := cells(read_upload(source, channels), width, height):
                note = f"This is a grid of {len(found)} images. Choose one of them."
                return {"cells": [address(image) for image in found], "note": note}
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
        "run": run,
        "limit": MOST_BYTES,
        "examples": examples(model),
    }
    own = f"element.querySelector('.pad') ?? element, props, trigger, server, {json.dumps(options)}"
    return gr.HTML(
        "",
        label=label,
        html_template='<div class="pad"></div>',
        js_on_load=f"ddpm.pad({own}); // 'change'",
        server_functions=[fit],
    )


def cells(picture: Image.Image, width: int, height: int, gap: int = 2) -> list[Image.Image]:
    """Return the images of a grid that `save_grid` wrote, at most `MOST_CELLS`; none for any other picture."""
    return [picture.crop(box) for box in _boxes(picture, width, height, gap)[:MOST_CELLS]]


def without_gaps(picture: Image.Image, width: int, height: int, gap: int = 2) -> Image.Image:
    """Return a grid that `save_grid` wrote with gaps that one sees through; any other picture as it is."""
    if boxes := _boxes(picture, width, height, gap):
        images_only = Image.new("L", picture.size)
        for box in boxes:
            images_only.paste(255, box)
        picture.putalpha(images_only)
    return picture


def _boxes(picture: Image.Image, width: int, height: int, gap: int) -> list[tuple[int, int, int, int]]:
    (columns, over), (rows, under) = (
        divmod(a - gap, b + gap) for a, b in zip(picture.size, (width, height), strict=True)
    )
    if over or under or columns * rows < 2 or np.asarray(picture)[:gap].min() < 255:
        return []
    corners = [(gap + x * (width + gap), gap + y * (height + gap)) for y in range(rows) for x in range(columns)]
    found = [(left, top, left + width, top + height) for left, top in corners]
    return [box for box in found if np.asarray(picture.crop(box)).min() < 255]


def slider(*arguments: Any, **options: Any) -> gr.Slider:
    """Create a slider without Gradio's button that resets it."""
    return gr.Slider(*arguments, buttons=[], **options)


def seed_field(info: str | None = None, **options: Any) -> gr.Number:
    """Create the field of a seed. Its bounds are those of the browser's whole numbers."""
    return gr.Number(0, label="Seed", info=info, precision=0, minimum=0, maximum=MOST_SEED, **options)


def knows_digits(model: Model) -> bool:
    """Whether this is a model of handwritten digits: it says what it was trained on, at the size of the examples."""
    return model.image_shape == (1, 28, 28) and data_section(model.provenance).get("source") in DIGITS


SHOWN = "723584"  # by the examples; see assets/digits.md


def examples(model: Model) -> list[dict[str, str]]:
    """Return bundled pictures with their classes for a model of digits.

    For another model, the page offers the model's own samples.
    """
    if not knows_digits(model):
        return []
    known = model.class_names or []
    with Image.open(ASSETS / "examples.png") as strip:
        return [
            {
                "image": address(strip.crop((28 * place, 0, 28 * place + 28, 28))),
                "label": label if label in known else "",
            }
            for place, label in enumerate(SHOWN)
        ]


def program_file(label: str) -> gr.Image:
    """Create an upload that only programs use. Gradio's own would decode the file before its header is checked."""
    image = gr.Image(label=label, type="filepath", visible=False)
    return _own_files(image, lambda payload: None if payload is None else payload.path)


def choice(
    known: Sequence[str], value: str, label: str, info: str = "", *, chips: dict[str, str] | None = None, **options: Any
) -> gr.HTML:
    """Create a choice as the browser's own list, for keyboards and phones. A program can send any text.

    chips: show buttons side by side, with shorter words for some choices.
    """
    told = json.dumps(
        {"label": label, "info": info, "choices": list(known), "chips": chips is not None, "short": chips}
    )
    return gr.HTML(
        value,
        label=label,
        html_template='<div class="choice"></div>',
        js_on_load=f"ddpm.choice(element, props, trigger, watch, {told}); // 'change', 'input'",
        **options,
    )


def class_field(model: Model, label: str = "Class", **options: Any) -> gr.HTML:
    """Create the choice of a class: none by default, or the first if the model needs one; hidden without classes."""
    known = classes(model)
    return choice(known or [NO_CLASS], known[0] if known else NO_CLASS, label, visible=bool(known), **options)


def live_pictures(step: Step, log_snr: float) -> str:
    """Return the HTML of x_t and the predicted x_0, side by side, and how far the run is."""
    noisy, clean = (
        figure(sheet(images), *title) for images, title in zip((step.x_t, step.x_0), TITLES.items(), strict=True)
    )
    return f'<div class="pair">{noisy}{clean}</div>{progress(step, log_snr)}'


def progress(step: Step, log_snr: float) -> str:
    """Return the HTML of a bar that says how far a run is, and of its moment."""
    bar = f'<progress max="{step.steps}" value="{step.index + 1}" aria-label="steps done"></progress>'
    return f'<div class="live">{bar}<p class="moment">{moment(step.t, log_snr)}</p></div>'


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
    """A temporary folder for the images of one response, removed after the response, when Gradio has copied them."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()

    def __enter__(self) -> "TempImages":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)
