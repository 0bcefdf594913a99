"""Plots for papers and teaching: from a model, a data set or a run directory to a matplotlib figure (PDF, SVG, PNG).

Plots are readable in print (8 points at the size they are drawn) and by colour-blind readers (Okabe-Ito colours, and
every curve also has its own dashes or marker).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from ddpm.common.errors import UserError, require
from ddpm.common.files import atomic_path, check_output, user_path
from ddpm.common.pixels import make_grid, numbered, to_float, to_uint8
from ddpm.common.randomness import ImageNoise, derive_seed
from ddpm.data import ImageDataset, open_dataset
from ddpm.data.datasets import matched_by_number
from ddpm.data.images import to_tensor
from ddpm.diffusion.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.model import Model

if TYPE_CHECKING:
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
LOSS_RANGE = 1e-4  # of the highest loss: where x_t is nearly all noise, it shows ε, and the loss falls towards 0


@dataclass(frozen=True)
class Curve:
    """y over x, with a shaded band between `low` and `high` if they are given."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@contextmanager
def figure(rows: int, columns: int, height: float) -> Iterator[tuple["Figure", np.ndarray]]:
    """Create a matplotlib figure as wide as a page with axes (rows, columns), in the style of this module."""
    matplotlib = require("matplotlib", "eval")
    with matplotlib.rc_context(STYLE):
        # not pyplot: it keeps every figure until it is closed, and is not thread-safe
        drawn = require("matplotlib.figure", "eval").Figure(figsize=(WIDTH, height), layout="constrained")
        yield drawn, drawn.subplots(rows, columns, squeeze=False)


def plain(name: str) -> str:
    """Escape a name for matplotlib: a dollar would begin a formula."""
    return name.replace("$", r"\$")


def check_figure(path: str | Path, *, overwrite: bool = False) -> Path:
    """Like `check_output`, for a plot; also checks, before the work starts, that matplotlib is installed."""
    require("matplotlib", "eval")
    return check_output(path, ENDINGS, overwrite=overwrite)


def save_figure(drawn: "Figure", path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a plot as .pdf, .svg or .png (200 dpi); UserError if the name has another ending or exists."""
    path = check_figure(path, overwrite=overwrite)
    dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # no date: the same plot is the same file
    with atomic_path(path) as beside, require("matplotlib", "eval").rc_context(STYLE):
        drawn.savefig(beside, dpi=200, bbox_inches="tight", pad_inches=0.03, metadata=dated.get(path.suffix.lower()))
    return path


def plot_schedules(betas: Mapping[str, Sequence[float]]) -> "Figure":
    """Plot β_t, ᾱ_t and the SNR ᾱ_t/(1-ᾱ_t) of named schedules, each given by its β_t."""
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
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
        return drawn


def plot_loss(curves: Mapping[str, Curve], ylabel: str = r"$\Vert\epsilon-\hat\epsilon\Vert^2$ per pixel") -> "Figure":
    """Plot the loss over t, one curve per model. Only the loss axis is logarithmic, since t = 0 must be visible."""
    with figure(1, 1, 3.0) as (drawn, axes):
        ax = axes[0, 0]
        for number, (name, curve) in enumerate(curves.items()):
            ax.plot(curve.x, curve.y, **_line(number), label=plain(name))
            if curve.low is not None and curve.high is not None:
                ax.fill_between(curve.x, curve.low, curve.high, color=COLOURS[number % len(COLOURS)], alpha=0.2, lw=0)
        ax.set(xlabel="t", ylabel=ylabel, yscale="log")
        highest = max(max(curve.y) for curve in curves.values())
        ax.set_ylim(bottom=max(ax.get_ylim()[0], highest * LOSS_RANGE))
        ax.legend()
        return drawn


def plot_quality(curves: Mapping[str, Curve], ylabel: str) -> "Figure":
    """Plot a metric over the network evaluations per image, one curve per sampler.

    Both axes are logarithmic; the metric's is linear if a value is 0 or less, as KID may be.
    """
    positive = not any(value <= 0 for curve in curves.values() for value in curve.y)
    with figure(1, 1, 3.4) as (drawn, axes):
        ax = axes[0, 0]
        for number, (name, curve) in enumerate(curves.items()):
            ax.plot(curve.x, curve.y, **_line(number), marker=MARKERS[number % len(MARKERS)], label=plain(name))
        yscale = "log" if positive else "linear"
        ax.set(xscale="log", yscale=yscale, xlabel="network evaluations per image", ylabel=ylabel)
        for axis in (ax.xaxis, ax.yaxis) if positive else (ax.xaxis,):
            _plain_ticks(axis)
        ax.legend()
        return drawn


def plot_images(
    images: Tensor, *, columns: Sequence[str] = (), rows: Sequence[str] = (), title: str | None = None
) -> "Figure":
    """Plot a table of images with a title above each column and next to each row.

    Args:
        images: float (rows, columns, C, H, W) in [-1, 1].
        columns, rows: their titles; none, or one each ("" for no title).
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


def _plain_ticks(axis: "Axis") -> None:
    """Label a logarithmic axis with 1, 2, 5, 10, 20, … as plain numbers."""
    ticker = require("matplotlib.ticker", "eval")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


def schedules(
    names: Sequence[ScheduleName] = SCHEDULES, timesteps: int = 1000, *, zero_terminal_snr: bool = False
) -> "Figure":
    """Plot β_t, ᾱ_t and SNR of named schedules; with `zero_terminal_snr`, rescaled to end at SNR 0."""
    betas = {name: make_betas(name, timesteps) for name in names}
    if not betas:
        raise UserError(f"no schedule is named: give at least one of {', '.join(SCHEDULES)}")
    if zero_terminal_snr:
        betas = {name: rescale_zero_terminal_snr(values) for name, values in betas.items()}
    return plot_schedules({name: NoiseSchedule(values).betas.tolist() for name, values in betas.items()})


def loss_by_timestep(
    models: Mapping[str, Model], data: str, *, num: int = 64, points: int = 60, seed: int = 0
) -> "Figure":
    """Plot the ε loss of each model over t, a mean over `num` images of `data`; the band is the middle 80% of them."""
    curves = {}
    for name, model in models.items():
        times = np.unique(np.linspace(0, model.diffusion.schedule.timesteps - 1, points).round()).astype(int)
        dataset = matching_data(model, data, labels=model.num_classes is not None)
        losses = epsilon_losses(model, dataset, times.tolist(), num=num, seed=seed).numpy()
        low, high = np.quantile(losses, [0.1, 0.9], axis=1)
        curves[name] = Curve(times.tolist(), losses.mean(1).tolist(), low.tolist(), high.tolist())
    return plot_loss(curves)


@torch.no_grad()
def epsilon_losses(model: Model, dataset: ImageDataset, times: Sequence[int], *, num: int, seed: int) -> Tensor:
    """Return |ε - ε̂|² per pixel, (len(times), num), with the same images and noise for every t."""
    indices = np.linspace(0, len(dataset) - 1, min(num, len(dataset))).round().astype(int)
    pixels, labels = dataset.batch(indices.tolist())
    x_0 = to_float(pixels).to(model.device)
    streams = [torch.Generator().manual_seed(derive_seed(seed, "loss", index)) for index in range(len(x_0))]
    noise = ImageNoise(streams, model.image_shape, device=model.device)()
    classes = None if labels is None else class_numbers(model, dataset)[labels]
    denoiser = model.denoiser(classes, clip=None, batch_size=model.default_batch_size)
    rows = []
    for t in times:
        predicted = denoiser(model.diffusion.q_sample(x_0, float(t), noise), float(t)).epsilon
        rows.append((predicted - noise).square().flatten(1).mean(1).cpu())
    return torch.stack(rows)


def class_numbers(model: Model, dataset: ImageDataset) -> Tensor:
    """Return the model's class number for each class of the data, by name, or by number if the model has no names."""
    names = dataset.class_names or []
    if matched_by_number(names, model.class_names or []):
        return torch.arange(len(names))
    return torch.tensor(model.resolve_labels(names))


def samples_by_class(model: Model, *, columns: int = 10, **options) -> "Figure":
    """Plot a row of samples per class; `options` as in `Model.sample`."""
    if model.class_names is None:
        raise UserError("this model was trained without classes: use ddpm sample")
    count = len(model.class_names)
    images = model.sample(count * columns, labels="all", **options)  # image i is of class i mod count
    return plot_images(images.unflatten(0, (columns, count)).transpose(0, 1), rows=model.class_names)


def nearest_neighbours(model: Model, data: str, *, num: int = 6, neighbours: int = 6, **options) -> "Figure":
    """Plot samples, each followed by the training images nearest to it in pixels, the nearest first."""
    dataset, images = matching_data(model, data, labels=False), model.sample(num, **options)
    wanted = to_uint8(images).flatten(1).float()
    best = torch.full((num, 0), 0.0)
    index = torch.zeros((num, 0), dtype=torch.long)
    for start in range(0, len(dataset), 2048):
        rows = range(start, min(start + 2048, len(dataset)))
        distance = torch.cdist(wanted, dataset.batch(rows)[0].cpu().flatten(1).float())
        best = torch.cat([best, distance], 1)
        index = torch.cat([index, torch.tensor(rows).expand(num, -1)], 1)
        best, kept = best.topk(min(neighbours, best.shape[1]), largest=False)
        index = index.gather(1, kept)
    found = to_float(dataset.batch(index.flatten().tolist())[0].cpu()).unflatten(0, index.shape)
    titles = ["sample", "nearest", *[""] * (found.shape[1] - 1)]
    return plot_images(torch.cat([images[:, None], found], 1), columns=titles)


def quality(points: str | Path) -> "Figure":
    """Plot a metric over network evaluations, from the JSON of `ddpm evaluate --sweep`."""
    try:
        rows = json.loads(user_path(points).read_text(encoding="utf-8"))
        found = [(row["sampler"], row["evaluations"], next(iter(row["metrics"].values()))) for row in rows]
        curves = {}
        for name in dict.fromkeys(sampler for sampler, _, _ in found):
            mine = sorted((evaluations, merit["value"]) for sampler, evaluations, merit in found if sampler == name)
            curves[name] = Curve(*map(list, zip(*mine, strict=True)))
        return plot_quality(curves, found[0][2]["title"])
    except OSError as error:
        raise UserError(f"{points} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, StopIteration, IndexError) as error:
        raise UserError(f"{points} is not what `ddpm evaluate --sweep` writes") from error


def training_progress(run: str | Path, *, rows: int = 6, columns: int = 8) -> "Figure":
    """Plot the previews of a run, from RUN/samples: one row per seed, one column per training step."""
    run = user_path(run)
    previews = numbered(run / "samples")
    if not previews:
        raise UserError(f"{run} holds no previews: a run directory has them as samples/NNNNNN.png")
    chosen = [previews[i] for i in np.unique(np.linspace(0, len(previews) - 1, columns).round().astype(int))]
    height, width = _image_size(run)
    shown = [to_float(_cut(to_tensor(Image.open(path)), height, width)[:rows]) for path in chosen]
    count = min(len(images) for images in shown)
    table = torch.stack([images[:count] for images in shown], dim=1)
    return plot_images(table, columns=[f"{int(path.stem):,}" for path in chosen], title="samples by training step")


def comparison(models: Mapping[str, Model], *, columns: int = 8, **options) -> "Figure":
    """Plot a row of samples per model, all from the same seeds; `options` as in `Model.sample`."""
    shapes = {model.image_shape for model in models.values()}
    if len(shapes) > 1:
        raise UserError(f"models of different shapes have no seeds in common: {', '.join(map(str, sorted(shapes)))}")
    return plot_images(torch.stack([model.sample(columns, **options) for model in models.values()]), rows=list(models))


def matching_data(model: Model, source: str, *, labels: bool) -> ImageDataset:
    """Open the data at the size and channels of the model, with the preprocessing of its training."""
    channels, *size = model.image_shape
    return open_dataset(source, image_size=size, channels=channels, labels=labels, **model.preprocessing._asdict())


def _image_size(run: Path) -> tuple[int, int]:
    try:
        size = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["image_size"]
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run} is no run directory: its config.yaml names no data.image_size") from error


def _cut(grid: Tensor, height: int, width: int, gap: int = 2) -> Tensor:
    """Cut a grid of `make_grid` into its images (N, C, H, W), row by row."""
    tiles = grid[:, gap:, gap:].unfold(1, height, height + gap).unfold(2, width, width + gap)
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
