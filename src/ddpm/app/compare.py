"""The Compare tab: one seed, drawn by several samplers with several numbers of steps or guidance weights."""

import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from ddpm.app import generate
from ddpm.app.components import (
    MOST_SEED,
    TempImages,
    bounded,
    choice,
    figure,
    origin,
    seed_field,
    sheet,
    sheet_layout,
    slider,
    tile,
    write_png,
)
from ddpm.app.generate import EVERY_CLASS, USUAL_GUIDANCE, has_guidance, most_steps, sampler_info
from ddpm.app.outcome import QUIET, Outcome, running
from ddpm.app.press import buttons, connect, live
from ddpm.common.errors import UserError
from ddpm.common.pixels import made_by, make_grid, to_pillow
from ddpm.model import Model, SamplingOptions
from ddpm.samplers import SAMPLERS, Step

MOST_COLUMNS, MOST_IMAGES, MOST_GUIDANCE = 8, 9, 8.0
STEPS, GUIDANCE = "steps", "guidance"


@dataclass(frozen=True)
class Grid:
    """What is compared: a row for each sampler, a column for each value of `axis`; the other one is `fixed`."""

    samplers: Sequence[str]
    axis: str
    values: Sequence[float]
    fixed: float
    label: str = EVERY_CLASS
    number: int = 4
    seed: int = 0

    def options(self, model: Model, sampler: str, value: float) -> dict[str, Any]:
        """Return the arguments of `Model.sample` for one cell; raise UserError if one is outside the page's bounds."""
        steps, guidance = (value, self.fixed) if self.axis == STEPS else (self.fixed, value)
        if not 0 <= guidance <= MOST_GUIDANCE:
            raise UserError(f"the guidance must be from 0 to {MOST_GUIDANCE:g}, not {guidance:g}")
        number = bounded("the number of images", self.number, 1, MOST_IMAGES)
        options: dict[str, Any] = {
            "num": number,
            "sampler": sampler,
            "steps": bounded("the number of steps", steps, 1, most_steps(model)),
            "guidance": float(guidance),
            "seed": bounded("the seed", self.seed, 0, MOST_SEED),
            "batch_size": number,
        }
        return options if self.label == EVERY_CLASS else options | {"labels": self.label}

    def cells(self) -> list[tuple[str, float]]:
        return [(sampler, value) for sampler in self.samplers for value in self.values]


def read_values(text: str) -> list[float]:
    """Read `5, 10, 20`."""
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(f"the columns are numbers such as 5, 10, 20, not {text!r}") from error
    if not 1 <= len(values) <= MOST_COLUMNS:
        raise UserError(f"give 1 to {MOST_COLUMNS} columns, such as 5, 10, 20")
    return values


def compare(model: Model, grid: Grid) -> Iterator[tuple[int, Step | Tensor]]:
    """Sample every cell in turn, with the same noise; yield its number with its steps, then with its images."""
    if not grid.samplers:
        raise UserError("no sampler is chosen: choose at least one")
    jobs = [grid.options(model, *cell) for cell in grid.cells()]  # all are checked before the first is sampled
    for number, options in enumerate(jobs):
        for event in _sample(model, options):
            yield number, event


def _sample(model: Model, options: dict[str, Any]) -> Iterator[Step | Tensor]:
    return live(lambda callback: model.sample(**options, callback=callback))


def as_command(model: Model, name: str, grid: Grid) -> str:
    """Return the commands that write the same cells, a file each."""
    cells = [(f"{sampler}-{value:g}.png", grid.options(model, sampler, value)) for sampler, value in grid.cells()]
    return "\n".join(generate.as_command(name, options, file) for file, options in cells)


def as_python(model: Model, name: str, grid: Grid) -> str:
    """Return the Python program that writes the same cells, a file each."""
    loops = ("sampler", grid.axis)  # the variables of the loops, which have the names of the options
    options = grid.options(model, grid.samplers[0], grid.values[0]) | dict.fromkeys(loops)
    arguments = ", ".join(f"{key}={key if key in loops else repr(value)}" for key, value in options.items())
    values = [int(value) if grid.axis == STEPS else value for value in grid.values]
    return (
        f"import ddpm\n\nmodel = ddpm.load({name!r})\n"
        f"for sampler in {list(grid.samplers)}:\n    for {grid.axis} in {values}:\n"
        f"        images = model.sample({arguments})\n"
        f'        ddpm.save_grid(images, f"{{sampler}}-{{{grid.axis}:g}}.png")'
    )


@dataclass(frozen=True)
class Cell:
    """A finished cell: its images as one picture, uint8 (C, H, W), the address of that with gaps that one sees through,
    its file, and how it was made."""

    picture: Tensor
    shown: str
    file: str
    origin: dict[str, Any]


def finished(model: Model, name: str, grid: Grid, place: int, images: Tensor) -> Cell:
    """Return cell number `place`; its file is the one that `as_command` writes."""
    sampler, value = grid.cells()[place]
    file, options = f"{sampler}-{value:g}.png", grid.options(model, sampler, value)
    sampling = SamplingOptions.of(**{key: value for key, value in options.items() if key != "num"}).resolved(model)
    command = generate.as_command(name, options, file)
    return Cell(make_grid(images), sheet(images), file, origin(model, command, sampling, images=len(images)))


def table(model: Model, grid: Grid, cells: Sequence[Cell], drawn: Tensor | None = None) -> str:
    """Return the HTML of the grid, with the cells that are finished and the one that is being drawn.

    Every cell has its size from the beginning, so that nothing moves while they are filled.
    """
    _, height, width = model.image_shape
    across, down, gap = sheet_layout(grid.number)
    shape = f"{across * (width + gap) + gap}/{down * (height + gap) + gap}"
    units = [f"{value:g} {grid.axis[:-1] if grid.axis == STEPS and value == 1 else grid.axis}" for value in grid.values]
    head = "".join(f'<th scope="col">{unit}</th>' for unit in units)
    rows = []
    for row, sampler in enumerate(grid.samplers):
        shown = []
        for column, unit in enumerate(units):
            place, inside = row * len(units) + column, f'<div class="spot" style="aspect-ratio:{shape}"></div>'
            if place < len(cells):
                cell, words = cells[place], f"{sampler}, {unit}, seed {grid.seed}"
                with made_by(cell.origin):
                    inside = tile(cell.picture, words, cell.file, shown=cell.shown)
            elif place == len(cells) and drawn is not None:
                inside = figure(sheet(drawn), f"{sampler}, {unit}, being drawn")
            shown.append(f"<td>{inside}</td>")
        rows.append(f'<tr><th scope="row">{escape(sampler)}</th>{"".join(shown)}</tr>')
    inside = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="compare" style="--columns:{len(units)}">{inside}</table></div>'


def save(cells: Sequence[Cell], path: Path) -> Path:
    """Write a ZIP of the cells, a PNG each."""
    with zipfile.ZipFile(path, "w") as archive:
        for cell in cells:
            with made_by(cell.origin):
                write_png(archive, cell.file, to_pillow(cell.picture))
    return path


def tab(model: Model, name: str) -> list[Any]:
    """Build the tab and connect its events; endpoint /compare. Return its settings."""
    guided, names = has_guidance(model), [EVERY_CLASS, *(model.class_names or [])]
    some = (1, 2, 4, 8) if model.student else (5, 10, 20, 50)
    usual = [steps for steps in some if steps <= most_steps(model)] or [most_steps(model)]
    rows = [model.student.sampler] if model.student else ["ancestral", "ddim", "dpm++sde"]
    with gr.Column(elem_classes="room"):
        with gr.Column(elem_classes="controls"):
            samplers = gr.CheckboxGroup(list(SAMPLERS), value=rows, label="Rows: samplers", info=sampler_info(model))
            with gr.Row(elem_classes=["fields", "many"]):
                axis = choice([STEPS, GUIDANCE], STEPS, "Columns", visible=guided, min_width=140)
                values = gr.Textbox(", ".join(map(str, usual)), label="Their values", min_width=140)
                fixed = gr.Number(
                    USUAL_GUIDANCE if guided else 1, label="Guidance", step=0.1, visible=guided, min_width=90
                )
                seed = seed_field(min_width=90)
                label = choice(names, EVERY_CLASS, "Class", visible=len(names) > 1, elem_classes="double")
                number = slider(1, MOST_IMAGES, 4, step=1, label="Images", min_width=140)
            pressed = buttons("Compare")
        empty = table(model, Grid(rows, STEPS, usual, 1), [])
        hint = "Every cell begins with the same noise. Press Compare."
        outcome = Outcome("compare", hint, ["All pictures, ZIP"], moves=False, before=empty)
    outcome.code()

    def run(samplers, axis, values, fixed, label, number, seed):
        grid = Grid(samplers, axis, read_values(values), fixed, label, number, seed)
        done: list[Cell] = []
        began, count = time.monotonic(), len(grid.cells())
        yield running("Starting …"), table(model, grid, done), *outcome.unfinished[1:]
        for place, event in compare(model, grid):
            said, drawn = f"Cell {place + 1} of {count}", None
            if isinstance(event, Step):
                said += f", step {event.index + 1} of {event.steps}"
                drawn = event.x_t
            else:
                done.append(finished(model, name, grid, place, event))
            yield running(said), table(model, grid, done, drawn), *outcome.unfinished[1:]
        equivalents = [write(model, name, grid) for write in (as_command, as_python)]
        with TempImages() as out:
            archive = save(done, out.folder / "compared.zip")
            yield (
                f"Done in {time.monotonic() - began:.0f} s, seed {seed}.",
                table(model, grid, done),
                str(archive),
                *equivalents,
            )

    def begin(axis):
        """Return usual values of what is compared, and of what is not."""
        if axis == GUIDANCE:
            return "1, 1.5, 2, 4", min(20, most_steps(model))
        return ", ".join(map(str, usual)), USUAL_GUIDANCE

    def name_fixed(axis):
        return gr.Number(label="Steps", step=1) if axis == GUIDANCE else gr.Number(label="Guidance", step=0.1)

    axis.input(begin, axis, [values, fixed], queue=False, **QUIET)
    axis.change(name_fixed, axis, fixed, queue=False, **QUIET)
    fields = [samplers, axis, values, fixed, label, number, seed]
    connect(pressed, run, fields, outcome)
    return fields
