"""The Runs tab: curves and previews of the training runs in a folder."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import yaml
from PIL import Image

from ddpm.app.components import choice, film, without_gaps
from ddpm.app.figures import Curve, chart, figure
from ddpm.app.outcome import QUIET, status_line
from ddpm.app.press import show_user_errors
from ddpm.app.training import FEWEST_MINUTES, MOST_MINUTES, presets, process_of, trainings_in
from ddpm.app.uploads import read_upload
from ddpm.common.errors import UserError
from ddpm.common.files import is_model, is_run
from ddpm.common.pixels import numbered

CONFIG, METRICS, SAMPLES = "config.yaml", "metrics.jsonl", "samples"
MOST_RUNS, MOST_POINTS, MOST_PREVIEWS = 200, 2000, 24
MOST_LOG_BYTES = 2**26
LARGEST_GRID = 480  # pixels a side, as shown
SMOOTHING = 20  # points per running mean of a long curve
WIDE = 440
AXES = ("step", "images", "epoch", "seconds")


def find_runs(folder: Path) -> list[str]:
    """List the run directories in `folder`, or `folder` itself if it is one; the latest change first."""
    if is_run(folder):
        return [folder.resolve().name]  # resolved, because "." has no name
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if is_run(path)]
    return [path.name for path in sorted(found, key=_changed, reverse=True)[:MOST_RUNS]]


def run_path(folder: Path, name: str) -> Path:
    """Return the directory of a run that `find_runs` lists; refuse any other name."""
    if name not in find_runs(folder):
        raise UserError(f"no run {name!r} in {folder}")
    return folder if is_run(folder) else folder / name


def fingerprint(folder: Path) -> list[list[Any]]:
    """Return a value that changes when a run appears, logs a line, writes a preview, starts or ends."""
    runs = {name: run_path(folder, name) for name in find_runs(folder)}
    return [[name, _changed(run), process_of(run) is not None] for name, run in runs.items()]


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the numbers that a run has logged so far; skip a line that is still being written."""
    records = []
    try:
        with (run / METRICS).open("rb") as file:
            lines = file.read(MOST_LOG_BYTES).splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            values = json.loads(line)
            records.append({key: value for key, value in values.items() if isinstance(value, int | float)})
        except (ValueError, AttributeError):
            continue
    return [record for record in records if "step" in record]


def quantities(folder: Path, names: Sequence[str]) -> list[str]:
    """List the quantities that the chosen runs have logged, the loss first."""
    keys = dict.fromkeys(["loss"])
    for name in names:
        for record in read_metrics(run_path(folder, name)):
            keys |= dict.fromkeys(record)
    return [key for key in keys if key not in AXES]


def curves(folder: Path, names: Sequence[str], quantity: str = "loss") -> list[Curve]:
    """Return a logged quantity of the chosen runs over their steps; a run's look does not depend on the choice."""
    known, found = sorted(find_runs(folder)), []
    for name in names:
        points = [(r["step"], r[quantity]) for r in read_metrics(run_path(folder, name)) if quantity in r]
        if points:
            steps, values = _thinned(np.array(points, dtype=np.float64))
            found.append(Curve(name, steps, values, known.index(name)))
    return found


def previews(folder: Path, name: str) -> list[tuple[Image.Image, str]]:
    """Return previews of a run with captions, the oldest first; skip one that is still being written."""
    run = run_path(folder, name)
    found, paths, size = [], numbered(run / SAMPLES), _configured(run, "data", "image_size") or 0
    chosen = sorted({round(place) for place in np.linspace(0, len(paths) - 1, min(len(paths), MOST_PREVIEWS))})
    for path in (paths[index] for index in chosen):
        try:
            image = read_upload(str(path), 3, path.name)
        except UserError:
            continue
        if size:
            image = without_gaps(image, size, size)
        image.thumbnail((LARGEST_GRID, LARGEST_GRID), Image.Resampling.LANCZOS)
        found.append((image, f"{name}, step {int(path.stem):,}"))
    return found


@dataclass(frozen=True)
class State:
    """How far a run is: `total` steps are configured; None where it is not known. `active`: a process trains it now."""

    step: int
    total: int | None
    images_per_second: float | None
    seconds_left: float | None
    active: bool

    def words(self) -> list[str]:
        """Return state, step, images per second and time left, as a person reads them."""
        over = self.total is not None and self.step >= self.total
        state = "training" if self.active else "finished" if over else "stopped"
        step = f"{self.step:,}" + (f" of {self.total:,}" if self.total else "")
        speed = "" if self.images_per_second is None else f"{self.images_per_second:,.0f}"
        left = self.seconds_left if self.active and not over else None
        return [state, step, speed, "" if left is None else f"{left / 60:.0f} min" if left > 99 else f"{left:.0f} s"]


def state_of(run: Path) -> State:
    """Read how far a run is, from its configuration, its last logged line and its lock."""
    records = read_metrics(run)
    last = records[-1] if records else {}
    step, seconds = int(last.get("step", 0)), last.get("seconds")
    total = _configured(run, "training", "steps")
    left = seconds / step * (total - step) if total and step and seconds else None
    return State(step, total, last.get("images_per_second"), left, process_of(run) is not None)


def _configured(run: Path, section: str, field: str) -> int | None:
    """Return a whole number of a run's configuration; None if it is not there."""
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return int(yaml.safe_load((run / CONFIG).read_text())[section][field])
    return None


def table(folder: Path, names: Sequence[str], *, switches: bool = False, trains: bool = False) -> str:
    """Return the states of the chosen runs as an HTML table.

    switches: with a button to use a run's model. trains: with a button to stop a run that is training.
    """
    if not names:
        return "<p>No run is chosen: tick one.</p>"
    words = ("run", "state", "step", "images a second", "time left", *([""] if switches or trains else []))
    head = "".join(f"<th scope='col'>{word}</th>" if word else "<td></td>" for word in words)
    rows = "".join(_row(run_path(folder, name), name, switches, trains) for name in names)
    return f"<div class='scroll'><table class='runs'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _row(run: Path, name: str, switches: bool, trains: bool) -> str:
    state, buttons = state_of(run), ""
    if switches and is_model(run / "model"):
        buttons += _button("use", str(run), "Use this model")
    if trains and state.active:
        buttons += _button("stop", name, "Stop")
    units = ("", "", "images a second", "left")  # seen on a phone, which has no room for the head
    cells = "".join(
        f'<td data-unit="{unit}">{word}</td>' if word else "<td></td>"
        for word, unit in zip(state.words(), units, strict=True)
    )
    last = f"<td>{buttons}</td>" if switches or trains else ""
    return f"<tr><th scope='row'>{escape(name)}</th>{cells}{last}</tr>"


def _button(does: str, name: str, words: str) -> str:
    return f'<button type="button" class="small" data-{does}="{escape(name)}">{words}</button>'


def _changed(run: Path) -> float:
    paths = [run / CONFIG, run / METRICS, run / SAMPLES]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _thinned(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of (n, 2) points: a running mean if there are many, thinned to `MOST_POINTS`."""
    steps, values = points.T
    if len(values) > 10 * SMOOTHING:
        values = np.convolve(values, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
        steps = steps[SMOOTHING - 1 :]
    stride = max(1, len(steps) // MOST_POINTS)
    return steps[::stride], values[::stride]


EVERY = 5  # seconds
FIRST = 4  # runs selected at first


def tab(folder: Path, page: gr.Blocks, *, switches: bool = False, trains: bool = False) -> None:
    """Build the tab and connect its events; endpoint /runs. See `table` for the options."""
    where = gr.Markdown(elem_classes="hint")
    with gr.Column(elem_classes="chooser"):
        with gr.Column(elem_classes="controls"):
            chosen: Any = gr.CheckboxGroup([], label="Runs")
            with gr.Row(elem_classes="fields"):
                quantity: Any = gr.Dropdown(["loss"], value="loss", label="Quantity")
        states = gr.HTML()
        with gr.Row(elem_classes="room"):
            with gr.Column(min_width=300):
                drawn = gr.HTML()
            with gr.Column(min_width=300):
                pictures = gr.HTML()
    # The choices appear after the page has polled, which a program never does. So Gradio's own check of the choice is
    # replaced, and `run_path` refuses unknown names.
    chosen.preprocess, quantity.preprocess = list, str
    if trains:
        train(folder)
    seen = gr.State(None)  # not polled yet

    def runs(names, quantity):
        found = curves(folder, names, quantity)
        words = quantity.replace("_", " ")
        log = quantity == "loss" and all((curve.y > 0).all() for curve in found)
        plot = figure(
            [chart(words, "step", found, log=log, width=WIDE)], found, f"{words} over steps of {', '.join(names)}"
        )
        films = [film([([image], caption) for image, caption in grids], last=True) for grids in
                 (previews(folder, name) for name in names[:FIRST]) if grids]  # fmt: skip
        return (
            table(folder, names, switches=switches, trains=trains),
            plot,
            f'<div class="title">Previews</div><div class="films">{"".join(films) or "<p>No previews yet.</p>"}</div>',
        )

    def look(names, quantity, seen):
        """Poll the folder; send nothing if nothing has changed.

        The figures come with the ticks: what follows an update of them may still be told the ticks before it.
        """
        now = fingerprint(folder)
        if now == seen:
            return [gr.skip()] * 7
        known, there = {name for name, *_ in seen or []}, [name for name, *_ in now]
        kept = [name for name in names if name in there] + [name for name in there[:FIRST] if not known]
        hint = f"Runs in `{folder}`, checked every {EVERY} seconds." if there else nothing_in(folder, trains)
        choices = quantities(folder, kept)
        other: dict[str, Any] = {} if quantity in choices else {"value": "loss"}
        shown = runs(kept, other.get("value", quantity)) if there else ("", "", "")
        # the ticks are sent only if they differ: they may have changed in the meantime
        boxes = gr.CheckboxGroup(there) if kept == names else gr.CheckboxGroup(there, value=kept)
        return hint, boxes, gr.Dropdown(choices, **other), now, *shown

    shown, quiet = [chosen, quantity], {"concurrency_id": "runs", "show_progress": "hidden"}
    figures = [states, drawn, pictures]
    polled = [where, chosen, quantity, seen, *figures]
    ticks = [page.load, gr.Timer(EVERY).tick]
    gr.on(ticks, show_user_errors(look), [*shown, seen], polled, api_visibility="private", **quiet)
    # always the last choice: a press while a figure is drawn must not be lost
    gr.on(
        [chosen.input, quantity.input],
        show_user_errors(runs),
        shown,
        figures,
        api_name="runs",
        trigger_mode="always_last",
        **quiet,
    )


def train(folder: Path) -> None:
    """Build the fields that start a training, and connect the buttons of the table that stop one."""
    trainings = trainings_in(folder)
    with gr.Accordion("Train a model", open=not find_runs(folder)):
        with gr.Row(elem_classes="fields"):
            preset = choice(presets(), "digits", "Preset", min_width=140)
            data = gr.Textbox("", label="Images", placeholder="the preset's own, or a folder", min_width=180)
            minutes = gr.Number(
                10, label="Minutes", minimum=FEWEST_MINUTES, maximum=MOST_MINUTES, step=0.1, min_width=90
            )
            name = gr.Textbox("my-run", label="Name of the run", min_width=120)
        with gr.Row(elem_classes="action"):
            start = gr.Button("Start training", variant="primary", min_width=120)
        said, going = status_line(""), status_line("")

    def begin(*fields):
        return escape(trainings.start(*fields)), ""

    def stop_training(name: str) -> str:
        return trainings.stop(name)

    def dismiss(name: str) -> None:
        trainings.dismiss(name)

    def news(going):
        """Poll the trainings; send nothing if nothing has changed, because `said` may be a refusal."""
        lines = "".join(
            f'<div class="news"><span>{escape(f"{name}: {words}")}</span>'
            + (_button("stop", name, "Stop") if trainings.prepares(name) else _button("dismiss", name, "Dismiss"))
            + "</div>"
            for name, words in trainings.news().items()
        )
        return (gr.skip(), gr.skip()) if lines == going else ("", lines)

    gr.HTML(
        html_template="<span hidden></span>",
        js_on_load="ddpm.stopper(element, server);",
        server_functions=[stop_training, dismiss],
    )
    fields, told = [name, preset, data, minutes], [said, going]
    run = start.click(show_user_errors(begin), fields, told, concurrency_id="runs", **QUIET)
    run.failure(None, None, said, js="() => ddpm.refused()", **QUIET)
    gr.Timer(EVERY).tick(news, going, told, concurrency_id="runs", **QUIET)


def nothing_in(folder: Path, trains: bool) -> str:
    """Return the hint for a folder without runs."""
    here = "Start one below, or with" if trains else "Start one with"
    return f"No runs in `{folder}` yet. {here} `ddpm train digits --out {folder}/digits`, and watch it learn here."
