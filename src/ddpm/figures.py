"""The figures of a paper, each from one call: what a model, a data set or a run directory shows, in matplotlib.

`save_figure` of `ddpm.viewing.plots` writes them; the drawing itself is there too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from ddpm.data import ImageDataset, open_dataset
from ddpm.data.decode import to_tensor
from ddpm.data.stored import matched_by_number
from ddpm.errors import UserError
from ddpm.model import Labels, Model
from ddpm.pixels import to_float, to_uint8
from ddpm.process.schedule import NoiseSchedule, ScheduleName, make_betas, rescale_zero_terminal_snr
from ddpm.randomness import ImageNoise, derive_seed
from ddpm.samplers import SAMPLERS, timestep_grid
from ddpm.viewing.pictures import numbered
from ddpm.viewing.plots import Curve, plot_images, plot_loss, plot_quality, plot_schedules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


def schedules(
    names: Sequence[ScheduleName] = SCHEDULES, timesteps: int = 1000, *, zero_terminal_snr: bool = False
) -> "Figure":
    """β_t, ᾱ_t and SNR of named schedules; with `zero_terminal_snr`, after rescaling them to end at none."""
    betas = {name: make_betas(name, timesteps) for name in names}
    if not betas:
        raise UserError(f"no schedule is named; there are {', '.join(SCHEDULES)}")
    if zero_terminal_snr:
        betas = {name: rescale_zero_terminal_snr(values) for name, values in betas.items()}
    return plot_schedules({name: NoiseSchedule(values).betas.tolist() for name, values in betas.items()})


def loss_by_timestep(
    models: Mapping[str, Model], data: str, *, num: int = 64, points: int = 60, seed: int = 0
) -> "Figure":
    """The ε loss of each model over t, averaged over `num` images of `data`; the band holds the middle 80% of them."""
    curves = {}
    for name, model in models.items():
        times = np.unique(np.linspace(0, model.process.schedule.timesteps - 1, points).round()).astype(int)
        dataset = matching_data(model, data, labels=model.num_classes is not None)
        losses = epsilon_losses(model, dataset, times.tolist(), num=num, seed=seed).numpy()
        low, high = np.quantile(losses, [0.1, 0.9], axis=1)
        curves[name] = Curve(times.tolist(), losses.mean(1).tolist(), low.tolist(), high.tolist())
    return plot_loss(curves)


@torch.no_grad()
def epsilon_losses(model: Model, dataset: ImageDataset, times: Sequence[int], *, num: int, seed: int) -> Tensor:
    """|ε - ε̂|² per pixel (len(times), num), at the same images and noise for every t."""
    indices = np.linspace(0, len(dataset) - 1, min(num, len(dataset))).round().astype(int)
    pixels, labels = dataset.batch(indices.tolist())
    x_0 = to_float(pixels).to(model.device)
    streams = [torch.Generator().manual_seed(derive_seed(seed, "loss", index)) for index in range(len(x_0))]
    noise = ImageNoise(streams, model.image_shape, device=model.device)()
    classes = None if labels is None else class_numbers(model, dataset)[labels]
    denoiser = model.denoiser(classes, clip=None, batch_size=model.default_batch_size)
    rows = []
    for t in times:
        predicted = denoiser(model.process.q_sample(x_0, float(t), noise), float(t)).epsilon
        rows.append((predicted - noise).square().flatten(1).mean(1).cpu())
    return torch.stack(rows)


def class_numbers(model: Model, dataset: ImageDataset) -> Tensor:
    """The model's number of each of the data's classes, by name; by number where the model's classes have no other."""
    names = dataset.class_names or []
    if matched_by_number(names, model.class_names or []):
        return torch.arange(len(names))
    return torch.tensor(model.resolve_labels(names))


def samples_by_class(model: Model, *, columns: int = 10, **options) -> "Figure":
    """A row of samples for each class; `options` as `Model.sample` takes them."""
    if model.class_names is None:
        raise UserError("this model was trained without classes; ddpm sample draws a grid of it")
    count = len(model.class_names)
    images = model.sample(count * columns, labels="all", **options)  # image i is of class i mod count
    return plot_images(images.unflatten(0, (columns, count)).transpose(0, 1), rows=model.class_names)


@torch.no_grad()
def interpolation(
    model: Model, *, rows: int = 4, columns: int = 9, steps: int = 50, labels: Labels = None, seed: int = 0
) -> "Figure":
    """Between two samples' x_T along the great circle, each point sampled by DDIM (Song et al. 2021, section 5.3).

    Row r goes from sample 2r of the seed to sample 2r+1; `labels` are taken in turn by the rows.
    """
    classes = model.resolve_labels(labels)
    timesteps, weights = timestep_grid(model.process.schedule, steps), torch.linspace(0, 1, columns)
    table = []
    for row in range(rows):
        noise = ImageNoise.of_seed(seed, [2 * row, 2 * row + 1], model.image_shape)
        start, end = noise()
        x_T = torch.stack([slerp(start, end, weight) for weight in weights.tolist()]).to(model.device)
        of_class = None if classes is None else torch.full((columns,), classes[row % len(classes)])
        denoiser = model.denoiser(of_class, batch_size=model.default_batch_size)
        images = SAMPLERS["ddim"](denoiser, x_T, timesteps, noise=noise)
        table.append(images.float().clamp(-1, 1).cpu())
    return plot_images(torch.stack(table), columns=[f"{weight:.2g}" for weight in weights.tolist()])


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Spherical interpolation: keeps the norm that Gaussian noise of this dimension has."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-6:
        return torch.lerp(a, b, weight)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / angle.sin()


def nearest_neighbours(model: Model, data: str, *, num: int = 6, neighbours: int = 6, **options) -> "Figure":
    """Samples, each followed by the training images nearest to it by pixels, the nearest first."""
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
    """A figure of merit against network evaluations, from the JSON that a sweep over samplers wrote."""
    try:
        rows = json.loads(Path(points).read_text(encoding="utf-8"))
        found = [(row["sampler"], row["evaluations"], next(iter(row["figures"].values()))) for row in rows]
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
    """What a run's fixed seeds gave as it was trained: a row a seed, a column a step, from RUN/samples."""
    run = Path(run)
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
    """A row of samples for each model, all from the same seeds; `options` as `Model.sample` takes them."""
    shapes = {model.image_shape for model in models.values()}
    if len(shapes) > 1:
        raise UserError(f"models of different shapes have no seeds in common: {', '.join(map(str, sorted(shapes)))}")
    return plot_images(torch.stack([model.sample(columns, **options) for model in models.values()]), rows=list(models))


def matching_data(model: Model, source: str, *, labels: bool) -> ImageDataset:
    """The data at this model's size and channels, brought there as in training."""
    channels, *size = model.image_shape
    return open_dataset(source, image_size=size, channels=channels, labels=labels, **model.framing._asdict())


def _image_size(run: Path) -> tuple[int, int]:
    try:
        size = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["image_size"]
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run} is no run directory: its config.yaml names no data.image_size") from error


def _cut(grid: Tensor, height: int, width: int, gap: int = 2) -> Tensor:
    """The images (N, C, H, W) of a grid as `make_grid` lays them out, row by row."""
    tiles = grid[:, gap:, gap:].unfold(1, height, height + gap).unfold(2, width, width + gap)
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
