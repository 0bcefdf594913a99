"""The Runs tab: curves and previews of the training runs in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from ddpm.app.components import TempImages, read_upload, show_user_errors
from ddpm.app.explore import as_svg
from ddpm.common.errors import UserError
from ddpm.common.files import is_run
from ddpm.common.pixels import numbered
from ddpm.plotting.plots import COLOURS, DASHES, figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG, METRICS, SAMPLES = "config.yaml", "metrics.jsonl", "samples"
MOST_RUNS, MOST_POINTS, NEWEST = 200, 2000, 4
MOST_LOG_BYTES = 2**26
LARGEST_GRID = 640  # pixels a side, as shown
SMOOTHING = 20  # points per running mean of a long curve
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


def fingerprint(folder: Path) -> list[list[str | float]]:
    """Return a value that changes when a run appears, logs a line or writes a preview."""
    return [[name, _changed(run_path(folder, name))] for name in find_runs(folder)]


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


def curves(folder: Path, names: Sequence[str], quantity: str = "loss") -> "Figure":
    """Plot a logged quantity of the chosen runs over their steps."""
    with figure(1, 1, 3.0) as (drawn, axes):
        ax, lowest = axes[0, 0], np.inf
        for number, name in enumerate(names):
            points = [(r["step"], r[quantity]) for r in read_metrics(run_path(folder, name)) if quantity in r]
            if not points:
                continue
            steps, values = _thinned(np.array(points, dtype=np.float64))
            colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
            ax.plot(steps, values, color=colour, linestyle=dashes, label=plain(name))
            lowest = min(lowest, np.nanmin(values))
        ax.set(xlabel="step", ylabel=quantity.replace("_", " "))
        if np.isfinite(lowest):
            ax.legend()
            if lowest > 0 and quantity == "loss":
                ax.set_yscale("log")
        else:
            ax.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", transform=ax.transAxes)
        return drawn


def grids(folder: Path, names: Sequence[str], newest: int = NEWEST) -> list[tuple[Image.Image, str]]:
    """Return the newest previews of the chosen runs with captions; skip one that is still being written."""
    found = []
    for name in names:
        paths = numbered(run_path(folder, name) / SAMPLES)
        for path in reversed(paths[-newest:]):
            try:
                image = read_upload(str(path), 3, path.name)
            except UserError:
                continue
            image.thumbnail((LARGEST_GRID, LARGEST_GRID), Image.Resampling.LANCZOS)
            found.append((image, f"{name}, step {int(path.stem):,}"))
    return found


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


def tab(folder: Path, page: gr.Blocks) -> None:
    """Build the tab and connect its events; endpoint /runs."""
    where = gr.Markdown(elem_classes="hint")
    with gr.Row():
        chosen: Any = gr.CheckboxGroup([], label="Runs", scale=3, min_width=280)
        quantity: Any = gr.Dropdown(["loss"], value="loss", label="Quantity", scale=1, min_width=160)
    # The choices appear after the page has polled, which a program never does. So Gradio's own check of the choice is
    # replaced, and `run_path` refuses unknown names.
    chosen.preprocess, quantity.preprocess = list, str
    figure = gr.HTML(elem_classes="figure")
    gallery = gr.Gallery(
        label="Newest samples, from the same seeds", format="png", columns=4, height="auto", object_fit="contain",
        buttons=["download"], elem_classes="grids",
    )  # fmt: skip
    seen = gr.State(None)  # not polled yet

    @show_user_errors
    def runs(names, quantity):
        with TempImages() as out:
            yield pictures(names, quantity, out)

    def pictures(names, quantity, out):
        drawn = as_svg(curves(folder, names, quantity), f"{quantity} over steps of {', '.join(names)}")
        return drawn, [(out.put(grid), caption) for grid, caption in grids(folder, names)]

    @show_user_errors
    def look(names, quantity, seen):
        """Poll the folder; send nothing if nothing has changed."""
        now = fingerprint(folder)
        if now == seen:
            yield [gr.skip()] * 6
            return
        known, there = {name for name, _ in seen or []}, [name for name, _ in now]
        names = [name for name in names if name in there] + [name for name in there[:FIRST] if not known]
        hint = f"Runs in `{folder}`, checked every {EVERY} seconds." if there else nothing_in(folder)
        choices = quantities(folder, names)
        quantity = quantity if quantity in choices else "loss"
        with TempImages() as out:
            boxes = gr.CheckboxGroup(there, value=names), gr.Dropdown(choices, value=quantity)
            yield hint, *boxes, *pictures(names, quantity, out), now

    shown, quiet = [chosen, quantity], {"concurrency_id": "runs", "show_progress": "hidden"}
    everything = [where, chosen, quantity, figure, gallery, seen]
    ticks = [page.load, gr.Timer(EVERY).tick]
    gr.on(ticks, look, [*shown, seen], everything, api_visibility="private", **quiet)
    gr.on([chosen.input, quantity.input], runs, shown, [figure, gallery], api_name="runs", **quiet)


def nothing_in(folder: Path) -> str:
    """Return the hint for a folder without runs."""
    return (
        f"No runs in `{folder}` yet. Start one with `ddpm train digits --out {folder}/digits`, or name --runs FOLDER."
    )
