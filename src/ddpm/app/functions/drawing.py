"""Figures as the page shows them: drawings that stay sharp at any width."""

import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def as_svg(drawn: "Figure", description: str) -> str:
    """A matplotlib figure as an HTML element, described for those who do not see it."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    return f'<div role="img" aria-label="{escape(description)}">{drawing[drawing.index("<svg") :]}</div>'
