"""Figures as the page shows them: drawings that stay sharp at any width, and readable on a phone."""

import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHONE, ROW = 3.4, 2.2  # inches: a phone's width, and the height of one of the axes there


def as_svg(drawn: "Figure", description: str) -> str:
    """A matplotlib figure as an HTML element, described for those who do not see it.

    It is in there twice, as it is and with its axes one below the other; the page's style shows the one that fits.
    """
    wide = _svg(drawn)
    _stack(drawn)
    return (
        f'<div role="img" aria-label="{escape(description)}">'
        f'<div class="wide">{wide}</div><div class="narrow">{_svg(drawn)}</div></div>'
    )


def _svg(drawn: "Figure") -> str:
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :]


def _stack(drawn: "Figure") -> None:
    """Lay a figure out for a phone, its letters as large as before."""
    column = drawn.add_gridspec(len(drawn.axes), 1)
    for number, ax in enumerate(drawn.axes):
        ax.set_subplotspec(column[number])
    for legend in drawn.legends:
        legend.set_ncols(3)
    drawn.set_size_inches(PHONE, ROW * len(drawn.axes) + 0.3 * len(drawn.legends))
