"""The Runs tab: curves and previews of the training runs in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from ddpm.app.components import Outbox, read_upload, told
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
SMOOTHING = 20  # logged points that a curve's mean runs over, where there are many more
AXES = ("step", "images", "epoch", "seconds")


def find_runs(folder: Path) -> list[str]:
    """The run directories in `folder`, or `folder` itself where it is one: the newest log first."""
    if is_run(folder):
        return [folder.resolve().name]  # of ".", too
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if is_run(path)]
    return [path.name for path in sorted(found, key=_changed, reverse=True)[:MOST_RUNS]]


def run_path(folder: Path, name: str) -> Path:
    """The directory of a run that `find_runs` names, and of no other."""
    if name not in find_runs(folder):
        raise UserError(f"no run {name!r} in {folder}")
    return folder if is_run(folder) else folder / name


def fingerprint(folder: Path) -> list[list[str | float]]:
    """Changes when a run appears, logs a line or draws a grid."""
    return [[name, _changed(run_path(folder, name))] for name in find_runs(folder)]


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The numbers that a run has logged so far; a line that is being written is left out."""
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
    """What the chosen runs have logged, the loss first."""
    keys = dict.fromkeys(["loss"])
    for name in names:
        for record in read_metrics(run_path(folder, name)):
            keys |= dict.fromkeys(record)
    return [key for key in keys if key not in AXES]


def curves(folder: Path, names: Sequence[str], quantity: str = "loss") -> "Figure":
    """A logged quantity of the chosen runs over their steps."""
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
    """The newest grids of the chosen runs, each with its caption; one that is being written is left out."""
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
    """(steps, values) of (n, 2) points, a running mean where there are many, and no more than can be seen."""
    steps, values = points.T
    if len(values) > 10 * SMOOTHING:
        values = np.convolve(values, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
        steps = steps[SMOOTHING - 1 :]
    stride = max(1, len(steps) // MOST_POINTS)
    return steps[::stride], values[::stride]


EVERY = 5  # seconds
FIRST = 4  # runs shown unasked


def tab(folder: Path, page: gr.Blocks) -> None:
    """Lay the tab out and connect it; endpoint /runs."""
    where = gr.Markdown(elem_classes="hint")
    with gr.Row():
        chosen: Any = gr.CheckboxGroup([], label="Runs", scale=3, min_width=280)
        quantity: Any = gr.Dropdown(["loss"], value="loss", label="Quantity", scale=1, min_width=160)
    # The choices are known once the page has looked, which a program never does; what is no run is refused behind.
    # Set on the instance, as in `components`.
    chosen.preprocess, quantity.preprocess = list, str
    figure = gr.HTML(elem_classes="figure")
    gallery = gr.Gallery(
        label="Newest samples, from the same seeds", format="png", columns=4, height="auto", object_fit="contain",
        buttons=["download"], elem_classes="grids",
    )  # fmt: skip
    seen = gr.State(None)  # nothing yet, not even that there is nothing

    @told
    def runs(names, quantity):
        with Outbox() as out:
            yield pictures(names, quantity, out)

    def pictures(names, quantity, out):
        drawn = as_svg(curves(folder, names, quantity), f"{quantity} over steps of {', '.join(names)}")
        return drawn, [(out.put(grid), caption) for grid, caption in grids(folder, names)]

    @told
    def look(names, quantity, seen):
        """What is there now; nothing is sent while nothing has changed."""
        now = fingerprint(folder)
        if now == seen:
            yield [gr.skip()] * 6
            return
        known, there = {name for name, _ in seen or []}, [name for name, _ in now]
        names = [name for name in names if name in there] + [name for name in there[:FIRST] if not known]
        hint = f"Runs in `{folder}`, looked at every {EVERY} seconds." if there else nothing_in(folder)
        choices = quantities(folder, names)
        quantity = quantity if quantity in choices else "loss"
        with Outbox() as out:
            boxes = gr.CheckboxGroup(there, value=names), gr.Dropdown(choices, value=quantity)
            yield hint, *boxes, *pictures(names, quantity, out), now

    shown, quiet = [chosen, quantity], {"concurrency_id": "runs", "show_progress": "hidden"}
    everything = [where, chosen, quantity, figure, gallery, seen]
    ticks = [page.load, gr.Timer(EVERY).tick]
    gr.on(ticks, look, [*shown, seen], everything, api_visibility="private", **quiet)
    gr.on([chosen.input, quantity.input], runs, shown, [figure, gallery], api_name="runs", **quiet)


def nothing_in(folder: Path) -> str:
    """What to do where there is no run."""
    return (
        f"No runs in `{folder}` yet. Start one with `ddpm train digits --out {folder}/digits`, or name --runs FOLDER."
    )
