"""Line charts as SVG in the page's own colours: drawn once, in milliseconds, for a desk, a phone, light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 320, 220, 48, 34, 22, 10  # of a chart, and what surrounds its curves
MOST_POINTS = 400  # of a curve: more than its pixels
# Okabe and Ito's colours, those that are seen on white and on black; dashes tell curves of one colour apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B58900", "#56B4E9")
SMALL = 'fill="currentColor" font-size="11"'
DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Curve:
    """A named curve: x and y, float (N,). `place` chooses its look, so that a name keeps it."""

    name: str
    x: np.ndarray
    y: np.ndarray
    place: int

    def style(self) -> str:
        """Return the attributes of its line: every curve of a chart has its own, and later ones lie thinner on top."""
        dashes = DASHES[(self.place + self.place // len(COLOURS)) % len(DASHES)]
        return f'stroke="{COLOURS[self.place % len(COLOURS)]}" stroke-dasharray="{dashes}"'


def figure(charts: Sequence[str], curves: Sequence[Curve], description: str) -> str:
    """Return charts side by side, or below each other where there is no room, with one key for all."""
    keys = "".join(
        f'<span><svg width="28" height="8" style="flex:none" aria-hidden="true"><path d="M0 4H28" stroke-width="2.5" '
        f"{curve.style()}/></svg>{escape(curve.name)}</span>"
        for curve in curves
    )
    return (
        f'<div class="plots" role="img" aria-label="{escape(description)}">{"".join(charts)}'
        f'<div class="keys">{keys}</div></div>'
    )


def chart(title: str, xlabel: str, curves: Sequence[Curve], *, log: bool = False, width: int = WIDTH) -> str:
    """Return one chart as SVG; with `log`, over a logarithmic y-axis, which leaves out values that are not positive."""
    shown = [(curve, *_points(curve, log)) for curve in curves]
    xs, ys = (np.concatenate([np.empty(0), *(points[axis] for points in shown)]) for axis in (1, 2))
    if not len(xs):
        return (
            f'<svg viewBox="0 0 {width} {HEIGHT}"><text x="{width / 2}" y="{HEIGHT / 2}" text-anchor="middle" '
            'fill="currentColor" font-size="13">nothing logged yet</text></svg>'
        )
    (left, right), (low, high) = _range(xs), _range(ys)

    def across(x):
        return LEFT + (x - left) / (right - left) * (width - LEFT - RIGHT)

    def down(y):
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [f'<text x="{LEFT}" y="14" fill="currentColor" font-size="13">{escape(title)}</text>']
    for y in _marks(ys, _decades if log else _ticks):
        words = _number(10**y if log else y)
        parts.append(
            f'<path d="M{LEFT} {down(y):.1f}H{width - RIGHT}" stroke="currentColor" opacity="0.15"/>'
            f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end" {SMALL}>{words}</text>'
        )
    for x in _marks(xs, _ticks):
        parts.append(
            f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" {SMALL}>{_number(x)}</text>'
        )
    parts.append(f'<text x="{width - RIGHT}" y="{HEIGHT - 4}" text-anchor="end" {SMALL}>{escape(xlabel)}</text>')
    for order, (curve, us, vs) in enumerate(shown):
        line = 2.2 + 1.6 * (len(shown) - 1 - order) / max(1, len(shown) - 1)  # a curve under another is still seen
        if len(us) == 1:
            dot = f'cx="{across(us[0]):.1f}" cy="{down(vs[0]):.1f}" r="4" fill="{COLOURS[curve.place % len(COLOURS)]}"'
            parts.append(f"<circle {dot}/>")
            continue
        places = " ".join(f"{across(u):.1f},{down(v):.1f}" for u, v in zip(us, vs, strict=True))
        parts.append(f'<polyline points="{places}" fill="none" stroke-width="{line:.1f}" {curve.style()}/>')
    return f'<svg viewBox="0 0 {width} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _points(curve: Curve, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite points of a curve, as they are shown, at most `MOST_POINTS` and always its last."""
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log10(curve.y) if log else curve.y
    keep = np.flatnonzero(np.isfinite(y))
    if len(keep) > MOST_POINTS:
        keep = keep[np.linspace(0, len(keep) - 1, MOST_POINTS).round().astype(int)]
    return curve.x[keep], y[keep]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _marks(values: np.ndarray, ticks: Callable[[float, float], list[float]]) -> list[float]:
    """Return where an axis has numbers: at a single value itself, and at none between whole numbers."""
    if values.min() == values.max():
        return [float(values[0])]
    whole = bool((values == values.round()).all())
    return [tick for tick in ticks(*_range(values)) if not whole or tick == round(tick)]


def _ticks(low: float, high: float) -> list[float]:
    """Return 2 to 7 round numbers within a range."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [float(tick) for tick in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step]


def _decades(low: float, high: float) -> list[float]:
    """Return the logarithms of round numbers between 10^low and 10^high: powers of ten if there are several."""
    if high - low > 2:
        return [float(power) for power in np.unique(np.round(_ticks(low, high))) if low <= power <= high]
    powers = range(math.floor(low), math.ceil(high))
    return [y for power in powers for factor in (1, 2, 5) if low <= (y := power + math.log10(factor)) <= high]


def _number(value: float) -> str:
    """Write a number in few letters."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
