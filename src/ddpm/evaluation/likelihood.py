"""Bits/dim by the variational bound, its terms by timestep, and the rate-distortion curve of progressive coding.

The bound of Ho et al. 2020, eq. 5, on held-out images: a code of that length transmits them without loss. A few images
get every timestep. Many images get some timesteps each, one from every stratum of neighbouring timesteps, weighted by
the stratum's size. That is unbiased for each image, so the standard error is that of the mean over images.

Every pair of an image and a timestep is independent of the others. So the pairs are computed in chunks that are cached
on disk and divided among processes, and a killed evaluation resumes.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.common.errors import UserError, require
from ddpm.common.files import atomic_path
from ddpm.common.hardware import Precision, compute_dtype, precision_name
from ddpm.common.pixels import to_float
from ddpm.common.randomness import ImageNoise, derive_seed
from ddpm.diffusion.bound import VariationalBound
from ddpm.diffusion.timestep_samplers import StratifiedSampler
from ddpm.evaluation.cache import Chunks
from ddpm.model import Model

MIN_TIMESTEPS = 10  # per image, however many images there are
CHUNK = 1024  # pairs of an image and a timestep


@dataclass(frozen=True)
class Term:
    """The contribution of one stratum: all timesteps in first..last, which may be a single one.

    `bits`: the sum of its terms of the bound, in bits/dim. `rmse`: error of the predicted x_0 given x_t, in levels of
    0..255.
    """

    first: int
    last: int
    bits: float
    rmse: float


@dataclass(frozen=True)
class Likelihood:
    """The variational bound on the negative log-likelihood of `images` images.

    bits_per_dim ± standard_error: over the images. dims: dimensions of one image in its data set. If the model sees
    it grey as colour, bits are still counted per dimension of the original; that is an upper bound, since the code then
    describes more than the original. prior: L_T. terms: from t = 0, which is L_0, upwards.
    """

    bits_per_dim: float
    standard_error: float
    images: int
    timesteps_per_image: int
    dims: int
    prior: float
    terms: list[Term]

    @property
    def rate_distortion(self) -> list[tuple[float, float]]:
        """(bits/dim received, RMSE in levels of 0..255) of progressive coding, from the first bit to lossless.

        After receiving x_T … x_t, the receiver predicts x_0 from x_t (Ho et al. 2020, section 4.3). A wide stratum
        counts as half received.
        """
        curve, received = [], self.prior
        for term in reversed(self.terms):
            size = term.last - term.first + 1
            curve.append((received + term.bits * (size - 1) / (2 * size), term.rmse))
            received += term.bits
        return [*curve, (received, 0.0)]


def evaluate_likelihood(
    model: Model,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    budget: int = 50_000,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    progress: bool = True,
) -> Likelihood:
    """Bound the model's negative log-likelihood of held-out images (Ho et al. 2020, eq. 5).

    Args:
        images: uint8 (N, C, H, W) of the model's height and width. For a colour model, grey images get three channels.
        labels: int64 (N,), the class of each image for a class-conditional model; else None.
        seed: of timesteps and noise, which depend on the seed and an image's index only.
        budget: network evaluations, each of one image at one timestep. All T timesteps if N·T is within the budget,
            else budget/N stratified timesteps per image, at least MIN_TIMESTEPS.
        batch_size: images per forward pass; by default the model's.

    Every process must call it. Each computes its share, and all return the whole.

    Raises UserError for fewer than two images, images of another shape, or terms that are not finite.
    """
    count = len(images)
    if count < 2:
        raise UserError("the likelihood needs at least two images, for its standard error")
    dims = images[0].numel()  # before a grey image becomes colour
    images = _fit(images, model)
    timesteps = model.diffusion.schedule.timesteps
    strata = make_strata(timesteps, min(timesteps, max(MIN_TIMESTEPS, budget // count)))
    chosen = _draw_timesteps(strata, count, seed)  # (N, K)
    pairs = chosen.flatten().argsort(stable=True)  # by timestep, since a batch has one
    size = batch_size or model.default_batch_size
    settings = {
        **model.cache_key,
        "images": _content_hash(images),
        "labels": None if labels is None else _content_hash(labels),
        "timesteps": len(strata),
        "seed": seed,
        "batch_size": size,
        "precision": precision_name(compute_dtype(precision, model.device)),
    }
    chunks, bound = Chunks("likelihood", settings, len(pairs), CHUNK), VariationalBound(model.diffusion)
    model.compile_if_worthwhile(0)  # never: batches here have many sizes, and each would be compiled

    def computed(part: range) -> Iterator[np.ndarray]:
        for t, rows in _batches(chosen, pairs[part.start : part.stop], size):
            batch_labels = None if labels is None else labels[rows]
            x_0 = to_float(images[rows]).to(model.device)
            found = _term(model, bound, x_0, batch_labels, t, rows, seed, precision)
            if not found.isfinite().all():
                raise UserError(f"the likelihood at timestep {t} is not finite: the model's weights are damaged")
            yield found.numpy()

    chunks.fill(computed, "likelihood", progress)
    terms = torch.empty(len(pairs), 2, dtype=torch.float64)
    terms[pairs] = torch.from_numpy(chunks[:])
    bits, squared_error = terms.reshape(*chosen.shape, 2).unbind(-1)
    prior = bound.prior(to_float(images)).double()
    return _summary(bits, squared_error, prior, strata, images[0].numel(), dims)


def make_strata(timesteps: int, count: int) -> list[range]:
    """Divide 0..T-1 into `count` runs of neighbouring timesteps, with widths in proportion to t.

    The terms of the bound fall about as 1/t, so the strata have similar weights. t = 0, the decoder's term, is always
    alone.
    """
    strata, first = [], 0
    for left in range(count, 0, -1):
        ratio = (timesteps / first) ** (1 / left) if first else 1
        last = timesteps if left == 1 else min(max(first + 1, round(first * ratio)), timesteps - left + 1)
        strata.append(range(first, last))
        first = last
    return strata


def plot_likelihood(result: Likelihood, path: str | Path) -> None:
    """Plot bits by timestep, RMSE by timestep, and RMSE by bits received (figure 5 of Ho et al. 2020)."""
    figure = require("matplotlib.figure", "eval").Figure(figsize=(12, 3.6), layout="constrained")
    by_timestep, by_step, curve = figure.subplots(1, 3)
    middle = [(term.first + term.last) / 2 + 1 for term in result.terms]
    per_timestep = [term.bits / (term.last - term.first + 1) for term in result.terms]
    by_timestep.loglog(middle, per_timestep, ".-", markersize=3)
    by_timestep.set(xlabel="t + 1", ylabel="bits/dim of one timestep")
    by_timestep.set_title(f"{result.bits_per_dim:.3f} ± {result.standard_error:.3f} bits/dim")
    by_step.plot(middle, [term.rmse for term in result.terms], ".-", markersize=3)
    by_step.set(xlabel="t + 1", ylabel="RMSE of the predicted x_0 (0..255)", ylim=(0, None))
    rates, distortions = zip(*result.rate_distortion, strict=True)
    curve.plot(rates, distortions, ".-", markersize=3)
    curve.set(xlabel="rate (bits/dim received)", ylabel="distortion (RMSE, 0..255)", xlim=(0, None), ylim=(0, None))
    for axes in (by_timestep, by_step, curve):
        axes.grid(alpha=0.3)
    with atomic_path(Path(path)) as beside:
        figure.savefig(beside, dpi=150)


def _fit(images: Tensor, model: Model) -> Tensor:
    channels, height, width = model.image_shape
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    if tuple(images.shape[1:]) != model.image_shape:
        theirs = "×".join(map(str, images.shape[1:]))
        raise UserError(f"the images are {theirs} but the model makes {channels}×{height}×{width} (C×H×W)")
    return images


def _draw_timesteps(strata: list[range], count: int, seed: int) -> Tensor:
    """Choose one timestep per stratum for every image, int64 (N, K); the images cover each stratum evenly."""
    key, everyone = derive_seed(seed, "likelihood"), torch.arange(count)
    columns = [
        stratum.start + StratifiedSampler(len(stratum)).draw(key, k, everyone, count)[0]
        for k, stratum in enumerate(strata)
    ]
    return torch.stack(columns, dim=1)


def _batches(chosen: Tensor, pairs: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (t, images) of pairs that are sorted by timestep, at most `size` images at a time."""
    values, counts = chosen.flatten()[pairs].unique_consecutive(return_counts=True)
    for t, at_t in zip(values.tolist(), pairs.split(counts.tolist()), strict=True):
        for block in at_t.split(size):
            yield t, block // chosen.shape[1]


def _content_hash(values: Tensor) -> str:
    return hashlib.blake2b(values.contiguous().numpy().data, digest_size=10).hexdigest()


@torch.no_grad()
def _term(
    model: Model,
    bound: VariationalBound,
    x_0: Tensor,
    labels: Tensor | None,
    t: int,
    indices: Tensor,
    seed: int,
    precision: Precision,
) -> Tensor:
    """Return float64 (n, 2) per image: the term of the bound at t in bits/dim, and the mean squared error of x_0."""
    streams = [torch.Generator().manual_seed(derive_seed(seed, "likelihood", index, t)) for index in indices.tolist()]
    noise = ImageNoise(streams, x_0.shape[1:], device=x_0.device)()
    prediction = model.denoiser(labels, precision=precision)(model.diffusion.q_sample(x_0, t, noise), t)
    times = torch.full((len(x_0),), t, device=x_0.device)
    term = bound.term(prediction.x_0, x_0, times, prediction.variance_fraction)
    return torch.stack([term, (prediction.x_0 - x_0).square().flatten(1).mean(1)], dim=1).cpu().double()


def _summary(
    bits: Tensor, squared_error: Tensor, prior: Tensor, strata: list[range], model_dims: int, dims: int
) -> Likelihood:
    sizes = torch.tensor([len(stratum) for stratum in strata], dtype=torch.float64)
    scale = model_dims / dims
    by_stratum = bits * sizes * scale
    totals = by_stratum.sum(1) + prior * scale
    rmse = squared_error.mean(0).sqrt() * 127.5
    return Likelihood(
        bits_per_dim=float(totals.mean()),
        standard_error=float(totals.std()) / math.sqrt(len(totals)),
        images=len(totals),
        timesteps_per_image=len(strata),
        dims=dims,
        prior=float(prior.mean()) * scale,
        terms=[
            Term(stratum.start, stratum.stop - 1, sum_, error)
            for stratum, sum_, error in zip(strata, by_stratum.mean(0).tolist(), rmse.tolist(), strict=True)
        ],
    )
