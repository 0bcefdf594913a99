"""Figures for papers and teaching: arrays in, a matplotlib figure out, to be saved as PDF, SVG or PNG.

Readable in print (8 points at the size they are drawn) and by the colour-blind (Okabe-Ito colours, and every curve its
own dashes or marker as well).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ddpm.errors import require
from ddpm.viewing.files import check_target, written_beside
from ddpm.viewing.pictures import make_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ENDINGS = (".pdf", ".svg", ".png")
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # letters stay letters, also for the journals that refuse Type 3 fonts
    "svg.hashsalt": "ddpm",  # the same figure is the same file
}
WIDTH = 6.3  # inches: a page's text
LOSS_DECADES = 1e-4  # where x_t is all noise, ε can be read off it and the loss falls without end


@dataclass(frozen=True)
class Curve:
    """y over x; where `low` and `high` are given, the band between them is shaded."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@contextmanager
def figure(rows: int, columns: int, height: float) -> Iterator[tuple["Figure", np.ndarray]]:
    """A figure as wide as a page with a grid of axes (rows, columns), drawn in this module's style."""
    matplotlib = require("matplotlib", "eval")
    with matplotlib.rc_context(STYLE):
        # not pyplot: its figures live in a list of their own until somebody closes them, and are not for threads
        drawn = require("matplotlib.figure", "eval").Figure(figsize=(WIDTH, height), layout="constrained")
        yield drawn, drawn.subplots(rows, columns, squeeze=False)


def plain(name: str) -> str:
    """A name as matplotlib will show it: a dollar would begin a formula."""
    return name.replace("$", r"\$")


def check_figure(path: str | Path, *, overwrite: bool = False) -> Path:
    """`check_target` for a figure: before the work starts it is seen, too, that matplotlib is there to draw it."""
    require("matplotlib", "eval")
    return check_target(path, ENDINGS, overwrite=overwrite)


def save_figure(drawn: "Figure", path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a figure as .pdf, .svg or .png (200 dots an inch); UserError where the name is another or taken."""
    path = check_figure(path, overwrite=overwrite)
    dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # no clock: the same figure is the same file
    with written_beside(path) as beside, require("matplotlib", "eval").rc_context(STYLE):
        drawn.savefig(beside, dpi=200, bbox_inches="tight", pad_inches=0.03, metadata=dated.get(path.suffix.lower()))
    return path


def plot_schedules(betas: Mapping[str, Sequence[float]]) -> "Figure":
    """β_t, ᾱ_t and the SNR ᾱ_t/(1-ᾱ_t) of named schedules, each given by its β_t."""
    with figure(1, 3, 2.4) as (drawn, axes):
        for number, (name, values) in enumerate(betas.items()):
            beta = np.asarray(values, dtype=np.float64)
            alpha_bar = np.cumprod(1 - beta)
            with np.errstate(divide="ignore"):
                snr = alpha_bar / -np.expm1(np.log(alpha_bar))
            snr[snr <= 0] = np.nan  # zero terminal SNR has no place on a logarithmic axis
            for ax, curve in zip(axes[0], (beta, alpha_bar, snr), strict=True):
                ax.plot(np.arange(len(beta)), curve, **_line(number), label=plain(name))
        for ax, title in zip(
            axes[0], (r"$\beta_t$", r"$\bar\alpha_t$", r"SNR  $\bar\alpha_t/(1-\bar\alpha_t)$"), strict=True
        ):
            ax.set(title=title, xlabel="t")
        axes[0, 0].set_yscale("log")
        axes[0, 1].set_ylim(0, 1.02)
        axes[0, 2].set_yscale("log")
        _legend_below(drawn, axes[0, 0])
        return drawn


def plot_loss(curves: Mapping[str, Curve], ylabel: str = r"$\Vert\epsilon-\hat\epsilon\Vert^2$ per pixel") -> "Figure":
    """The loss over the timestep, a curve a model; both axes logarithmic would hide t = 0, so only the loss is."""
    with figure(1, 1, 3.0) as (drawn, axes):
        ax = axes[0, 0]
        for number, (name, curve) in enumerate(curves.items()):
            ax.plot(curve.x, curve.y, **_line(number), label=plain(name))
            if curve.low is not None and curve.high is not None:
                ax.fill_between(curve.x, curve.low, curve.high, color=COLOURS[number % len(COLOURS)], alpha=0.2, lw=0)
        ax.set(xlabel="t", ylabel=ylabel, yscale="log")
        highest = max(max(curve.y) for curve in curves.values())
        ax.set_ylim(bottom=max(ax.get_ylim()[0], highest * LOSS_DECADES))
        ax.legend()
        return drawn


def plot_quality(curves: Mapping[str, Curve], ylabel: str) -> "Figure":
    """A figure of merit over the network evaluations an image, a curve a sampler; both axes logarithmic.

    But not the figure's where one is 0 or less, as KID may be: it would have no place there.
    """
    positive = not any(value <= 0 for curve in curves.values() for value in curve.y)
    with figure(1, 1, 3.4) as (drawn, axes):
        ax = axes[0, 0]
        for number, (name, curve) in enumerate(curves.items()):
            ax.plot(curve.x, curve.y, **_line(number), marker=MARKERS[number % len(MARKERS)], label=plain(name))
        yscale = "log" if positive else "linear"
        ax.set(xscale="log", yscale=yscale, xlabel="network evaluations an image", ylabel=ylabel)
        for axis in (ax.xaxis, ax.yaxis) if positive else (ax.xaxis,):
            _plain_ticks(axis)
        ax.legend()
        return drawn


def plot_images(
    images: Tensor, *, columns: Sequence[str] = (), rows: Sequence[str] = (), title: str | None = None
) -> "Figure":
    """A table of images with a title above each column and beside each row.

    Args:
        images: float (rows, columns, C, H, W) in [-1, 1].
        columns, rows: their titles; none at all, or one each ("" for nothing).
    """
    down, across, channels, height, width = images.shape
    grid = make_grid(images.flatten(0, 1), columns=across).permute(1, 2, 0).numpy()
    inches = min(WIDTH / across, 1.1)  # of one image
    with figure(1, 1, 1) as (drawn, axes):
        ax = axes[0, 0]
        drawn.set_size_inches(
            inches * across + 0.09 * max(map(len, rows), default=0) + 0.1,
            inches * down * height / width + 0.22 * any(columns) + 0.25 * (title is not None) + 0.1,
        )
        ax.imshow(grid[..., 0] if channels < 3 else grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
        ax.grid(False)
        ax.set_frame_on(False)
        ax.tick_params(length=0, pad=1, labelbottom=False, labeltop=True)
        ax.set_xticks([2 + (i + 0.5) * (width + 2) - 1.5 for i in range(len(columns))], list(map(plain, columns)))
        ax.set_yticks([2 + (i + 0.5) * (height + 2) - 1.5 for i in range(len(rows))], list(map(plain, rows)))
        if title is not None:
            ax.set_title(title)
        return drawn


def _line(number: int) -> dict[str, object]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def _legend_below(drawn: "Figure", ax: "Axes") -> None:
    handles, labels = ax.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))


def _plain_ticks(axis: "Axis") -> None:
    """1, 2, 5, 10, 20, … along a logarithmic axis, in plain numbers."""
    ticker = require("matplotlib.ticker", "eval")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())
