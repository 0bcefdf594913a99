"""The Runs tab: trainings under a folder, as they go on."""

from pathlib import Path
from typing import Any

import gradio as gr

from ddpm.app.components import Outbox, told
from ddpm.app.functions import runs as behind
from ddpm.app.functions.drawing import as_svg

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
        drawn = as_svg(behind.curves(folder, names, quantity), f"{quantity} over steps of {', '.join(names)}")
        return drawn, [(out.put(grid), caption) for grid, caption in behind.grids(folder, names)]

    @told
    def look(names, quantity, seen):
        """What is there now; nothing is sent while nothing has changed."""
        now = behind.fingerprint(folder)
        if now == seen:
            yield [gr.skip()] * 6
            return
        known, there = {name for name, _ in seen or []}, [name for name, _ in now]
        names = [name for name in names if name in there] + [name for name in there[:FIRST] if not known]
        hint = f"Runs in `{folder}`, looked at every {EVERY} seconds." if there else nothing_in(folder)
        choices = behind.quantities(folder, names)
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
