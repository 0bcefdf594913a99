"""The metrics by name. A new one is a function of a `Comparison` and one line at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm.common.errors import UserError, nearest
from ddpm.evaluation.classifier import classification_accuracy_score, matched, spread
from ddpm.evaluation.distances import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    SPLITS,
    KernelDistance,
    Moments,
    blocks_needed,
    channel_drift,
    frechet_distance,
    inception_score,
    kernel_distance,
    level_shares,
    manifold_metrics,
    misplaced_levels,
)
from ddpm.evaluation.images import ImageSet
from ddpm.evaluation.inputs import (
    FEATURES,
    HELD_OUT_FEATURES,
    LIKELIHOOD,
    SAMPLES,
    Comparison,
    Figure,
    Metric,
    picture_path,
)
from ddpm.evaluation.likelihood import plot_likelihood
from ddpm.evaluation.memorisation import QUANTILE, audit, feature_neighbours, pixel_neighbours, save_pairs

CLASS_SUBSETS = 20
MANIFOLD_IMAGES = 10_000  # a side; the balls shrink as images are added, so this number belongs to the figure
PICTURES = {"memorisation": "closest-pairs", "nll": "likelihood"}  # what a metric draws beside its figures


def fid(c: Comparison) -> list[Figure]:
    """Fréchet distance of all generated images to the reference."""
    value = frechet_distance(c.generated_features.moments(), c.reference_moments)
    fewest = min(len(c.generated), c.reference_n or len(c.generated))
    note = "" if fewest >= c.network.dimensions else f"BIASED: {fewest:,} images are too few"
    return [Figure("fid" if c.network.standard else "frechet_distance", c.network.distance_name, value, note=note)]


def kid(c: Comparison) -> list[Figure]:
    """Kernel distance over random subsets."""
    found = kernel_distance(c.generated_features.features, c.real_features.features)
    return [Figure("kid", _titled(c, "KID"), found.mean, found.std, _subsets(found))]


def class_kid(c: Comparison) -> list[Figure]:
    """Kernel distance within every class that was generated; the figure is the worst class's."""
    real_labels, names = c.real.classes()
    labels = matched(c.generated, names)
    found = {}
    for number in labels.unique().tolist():
        generated = c.generated_features.features[np.flatnonzero(labels.numpy() == number)]
        real = c.real_features.features[np.flatnonzero(real_labels.numpy() == number)]
        if min(len(generated), len(real)) < 2:
            raise UserError(f"class_kid needs at least two images of class {names[number]} on both sides")
        found[names[number]] = kernel_distance(generated, real, subsets=CLASS_SUBSETS)
    worst = max(found, key=lambda name: found[name].mean)
    detail = {name: {"kid": value.mean, "std": value.std} for name, value in found.items()}
    note = f"class {worst}; all classes in the JSON"
    return [
        Figure("class_kid", f"worst class's {_titled(c, 'KID')}", found[worst].mean, found[worst].std, note, detail)
    ]


def prdc(c: Comparison) -> list[Figure]:
    """Precision, recall, density and coverage on at most MANIFOLD_IMAGES a side."""
    sides = [features.features for features in (c.real_features, c.generated_features)]
    real, generated = (side[spread(len(side), MANIFOLD_IMAGES).numpy()] for side in sides)
    with tqdm(total=blocks_needed(len(real), len(generated)), desc="neighbours", disable=not c.progress) as bar:
        found = manifold_metrics(real, generated, tick=bar.update)
    counts = f"{len(generated):,} against {len(real):,}"
    return [
        Figure("precision", _titled(c, "precision"), found.precision, note=f"k = {PRECISION_NEIGHBOURS}, {counts}"),
        Figure("recall", _titled(c, "recall"), found.recall, note=f"k = {PRECISION_NEIGHBOURS}, {counts}"),
        Figure("density", _titled(c, "density"), found.density, note=f"k = {DENSITY_NEIGHBOURS}, {counts}"),
        Figure("coverage", _titled(c, "coverage"), found.coverage, note=f"k = {DENSITY_NEIGHBOURS}, {counts}"),
    ]


def inception(c: Comparison) -> list[Figure]:
    """Inception Score of the generated images alone."""
    found = inception_score(c.generated_features.logits)
    return [Figure("inception_score", "Inception Score", found.mean, found.std, f"± over {SPLITS} splits")]


def drift(c: Comparison) -> list[Figure]:
    """Mean colour of the generated images less the reference's."""
    found = channel_drift(c.generated_features.channel_means[:], c.real_features.channel_means[:])
    names = ["grey"] if len(found.levels) == 1 else ["red", "green", "blue"]
    return [
        Figure(f"drift_{name}", f"drift of {name}", level, error, "levels of 0..255")
        for name, level, error in zip(names, found.levels, found.standard_errors, strict=True)
    ]


def levels(c: Comparison) -> list[Figure]:
    """Pixels whose level would have to change for the histograms to agree."""
    shares = [level_shares(_pixels(images)) for images in (c.generated, c.real)]
    return [Figure("levels", "misplaced levels", misplaced_levels(*shares), note="share of the pixels")]


def cas(c: Comparison) -> list[Figure]:
    """Classification accuracy score, and what real training images give the same classifier."""
    found = classification_accuracy_score(c.generated, c.real, c.held_out, c.progress)
    note = (
        f"on {len(c.held_out):,} of {c.held_out.title}, after training on {found.images:,} samples; "
        f"{found.real:.2%} after training on as many real images"
    )
    return [Figure("cas", "classification accuracy score", found.generated, note=note, detail={"real": found.real})]


def memorisation(c: Comparison) -> list[Figure]:
    """Nearest training images of samples and of test images, by pixels and by features, and the closest pairs."""
    generated, rows = pixel_neighbours(c.generated, c.real)
    by_pixels = audit(generated, pixel_neighbours(c.held_out, c.real)[0])
    generated, test = (
        feature_neighbours(features.features, c.real_features.features)
        for features in (c.generated_features, c.held_out_features)
    )
    by_features = audit(generated, test)
    pairs = ((by_pixels.generated, rows), (by_features.generated, rows))
    save_pairs(c.picture(PICTURES["memorisation"]), c.generated, c.real, *pairs)
    figures = []
    features = "features" if c.network.standard else f"{c.network.name} features"
    for how, by, found in (("pixels", "pixels", by_pixels), ("features", features, by_features)):
        detail = {
            "nearest_distance": float(found.generated.distance.min()),
            "median_distance": float(np.median(found.generated.distance)),
            "median_test_distance": float(np.median(found.test.distance)),
        }
        expected = f"{QUANTILE:.0%} if none is copied"
        figures += [
            Figure(f"copies_{how}", f"suspected copies by {by}", found.share_below, note=expected, detail=detail),
            Figure(f"nearer_{how}", f"nearer than test images by {by}", found.nearer_than_test, note="0.5 if alike"),
        ]
    return figures


def nll(c: Comparison) -> list[Figure]:
    """Bits/dim of test images by the variational bound, its terms and progressive coding."""
    found = c.likelihood
    plot_likelihood(found, c.picture(PICTURES["nll"]))
    channels, height, width = c.held_out.shape
    note = (
        f"± standard error over {found.images:,} of {c.held_out.title}, {found.timesteps_per_image} timesteps each; "
        f"a dimension is one of {height}×{width}×{channels}, as the model sees them"
    )
    detail = {
        "dims": found.dims,
        "prior": found.prior,
        "terms": [asdict(term) for term in found.terms],
        "rate_distortion": found.rate_distortion,
    }
    return [Figure("nll", "bits/dim (bound)", found.bits_per_dim, found.standard_error, note, detail)]


def _pixels(images: ImageSet) -> Iterator[np.ndarray]:
    """uint8 (n, C, H, W) in chunks."""
    for start in range(0, len(images), images.chunk):
        yield images[slice(start, start + images.chunk)].numpy()


def _titled(c: Comparison, name: str) -> str:
    """What a figure is called, so that nobody takes that of another network for the published one."""
    return name if c.network.standard else f"{name} ({c.network.name} features)"


def _subsets(found: KernelDistance) -> str:
    if found.std is None:
        return f"no ±: all {found.subset_size:,} images of both sides are one subset"
    return f"± over {found.subsets} subsets of {found.subset_size:,}"


def enough_for_fid(c: Comparison) -> None:
    """Fewer images than dimensions leave the covariance singular and the distance far too large."""
    if isinstance(c.reference, Moments) and c.reference.dimensions != c.network.dimensions:
        raise UserError(
            f"needs features of the reference's {c.reference.dimensions} dimensions; {c.network.name} has "
            f"{c.network.dimensions}: both sides need the same network"
        )
    for title, n in (("the reference", c.reference_n), (c.generated.title, len(c.generated))):
        if n is not None and n < c.network.dimensions and not c.force:
            raise UserError(
                f"needs as many images as feature dimensions, {c.network.dimensions:,}, and {title} has {n:,}: "
                "take more, or kid, which needs fewer; --force computes it and labels it biased"
            )


def grey_or_colour(c: Comparison) -> None:
    """The networks that look at the images know no others."""
    channels = c.generated.shape[0]
    if channels not in (1, 3):
        able = ", ".join(name for name, metric in METRICS.items() if grey_or_colour not in metric.needs)
        raise UserError(f"needs grey or colour images, and {c.generated.title} has {channels} channels: take {able}")


def has_logits(c: Comparison) -> None:
    """Only where the feature network is a whole classifier."""
    if c.network.classes == 0:
        raise UserError(f"needs class logits, and the {c.network.name} features have none")


def real_images(c: Comparison) -> None:
    """Not ready moments alone."""
    _ = c.real


def classes(c: Comparison) -> None:
    """On both sides, the same."""
    matched(c.generated, c.real.classes()[1])


def held_out(c: Comparison) -> None:
    """Images that were not trained on."""
    _ = c.held_out


def held_out_classes(c: Comparison) -> None:
    """The held-out images are read by class."""
    matched(c.generated, c.held_out.classes()[1])


def model_told_classes(c: Comparison) -> None:
    """A model with classes is told those of the held-out images."""
    if c.model.class_names is not None:
        matched(c.held_out, c.model.class_names)


METRICS = {
    "fid": Metric(fid, needs=(grey_or_colour, enough_for_fid), mixture=True),
    "kid": Metric(kid, needs=(grey_or_colour, real_images), least=2, mixture=True),
    "class_kid": Metric(class_kid, needs=(grey_or_colour, classes), least=2),
    "prdc": Metric(prdc, needs=(grey_or_colour, real_images), least=DENSITY_NEIGHBOURS + 1),
    "is": Metric(inception, needs=(grey_or_colour, has_logits), least=SPLITS),
    "drift": Metric(drift, needs=(grey_or_colour, real_images), least=2, mixture=True),
    "levels": Metric(levels, needs=(real_images,), uses=(SAMPLES,), mixture=True),
    "cas": Metric(cas, needs=(grey_or_colour, classes, held_out_classes), uses=(SAMPLES,)),
    "nll": Metric(nll, needs=(model_told_classes, held_out), uses=(LIKELIHOOD,)),
    "memorisation": Metric(
        memorisation, needs=(grey_or_colour, real_images, held_out), uses=(SAMPLES, FEATURES, HELD_OUT_FEATURES)
    ),
}
DEFAULT = ("fid", "kid", "prdc", "is", "drift", "levels")


def choose_metrics(c: Comparison, names: Sequence[str] | None) -> list[str]:
    """The metrics asked for, each able to say something; without any, those of DEFAULT that data and features allow.

    UserError where one that was asked for lacks something, and where FID does: a default that is quietly left out
    because of too few images would look like an oversight.
    """
    chosen = list(names or (name for name in DEFAULT if name == "fid" or METRICS[name].lacks(c) is None))
    for name in chosen:
        if reason := find_metric(name).lacks(c):
            raise UserError(f"{name} {reason}")
    return chosen


def pictures_of(names: Sequence[str] | None, pictures: Path) -> list[Path]:
    """What the metrics asked for will draw."""
    return [picture_path(pictures, PICTURES[name]) for name in names or DEFAULT if name in PICTURES]


def find_metric(name: str) -> Metric:
    """The metric of this name; UserError with the nearest one otherwise."""
    if name in METRICS:
        return METRICS[name]
    raise UserError(f"no metric {name!r}; {nearest(name, METRICS)}")
