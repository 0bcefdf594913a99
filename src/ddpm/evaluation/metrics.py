"""The metrics by name. A new one is a function of a `Comparison` and one line at the end."""

import difflib
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from ddpm.errors import UserError
from ddpm.evaluation.accuracy_score import classification_accuracy_score, matched, spread
from ddpm.evaluation.comparison import FEATURES, SAMPLES, TEST_FEATURES, Comparison, Figure, Metric
from ddpm.evaluation.frechet import Moments, frechet_distance
from ddpm.evaluation.kernel import KernelDistance, kernel_distance
from ddpm.evaluation.likelihood import evaluate_likelihood, plot_likelihood
from ddpm.evaluation.manifold import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    blocks_needed,
    manifold_metrics,
)
from ddpm.evaluation.memorisation import QUANTILE, audit, feature_neighbours, pixel_neighbours, save_pairs
from ddpm.evaluation.scores import SPLITS, channel_drift, inception_score

LIKELIHOOD_IMAGES = 2000
MANIFOLD_IMAGES = 10_000  # a side; the balls shrink as images are added, so this number belongs to the figure


def fid(c: Comparison) -> list[Figure]:
    """Fréchet distance of all generated images to the reference."""
    value = frechet_distance(c.generated_features.moments(), c.reference_moments)
    fewest = min(len(c.generated), c.reference_n or len(c.generated))
    note = "" if fewest >= c.network.dimensions else f"BIASED: {fewest:,} images are too few"
    return [Figure("fid" if c.network.standard else "frechet_distance", c.network.distance_name, value, note=note)]


def enough_for_fid(c: Comparison) -> None:
    """Fewer images than dimensions leave the covariance singular and the distance far too large."""
    if isinstance(c.reference, Moments) and c.reference.dimensions != c.network.dimensions:
        raise UserError(
            f"the reference's moments have {c.reference.dimensions} dimensions and the {c.network.name} features "
            f"{c.network.dimensions}: both sides need the same network"
        )
    for title, n in (("the reference", c.reference_n), (c.generated.title, len(c.generated))):
        if n is not None and n < c.network.dimensions and not c.force:
            raise UserError(
                f"{title} has {n:,} images, fewer than the {c.network.dimensions:,} feature dimensions, and FID would "
                "say nothing: take more, or kid, which needs fewer; --force computes it and labels it biased"
            )


def kid(c: Comparison) -> list[Figure]:
    """Kernel distance over random subsets."""
    found = kernel_distance(c.generated_features.features, c.reference_features.features)
    return [Figure("kid", _kid_title(c), found.mean, found.std, f"± over {_subsets(found)}")]


def class_kid(c: Comparison) -> list[Figure]:
    """Kernel distance within every class that was generated; the figure is the worst class's."""
    labels = {"generated": matched(c.generated, c.reference.class_names), "reference": c.reference.labels}
    names = c.reference.class_names
    found = {}
    for number in labels["generated"].unique().tolist():
        sides = [
            features[np.flatnonzero(labels[side].numpy() == number)]
            for side, features in (
                ("generated", c.generated_features.features),
                ("reference", c.reference_features.features),
            )
        ]
        if min(map(len, sides)) < 2:
            raise UserError(f"class_kid needs at least two images of class {names[number]} on both sides")
        found[names[number]] = kernel_distance(*sides, subsets=20)
    worst = max(found, key=lambda name: found[name].mean)
    detail = {name: {"kid": value.mean, "std": value.std} for name, value in found.items()}
    note = f"class {worst}; all classes in the JSON"
    return [Figure("class_kid", f"worst class's {_kid_title(c)}", found[worst].mean, found[worst].std, note, detail)]


def prdc(c: Comparison) -> list[Figure]:
    """Precision, recall, density and coverage on at most MANIFOLD_IMAGES a side."""
    sides = [features.features for features in (c.reference_features, c.generated_features)]
    real, generated = (side[spread(len(side), MANIFOLD_IMAGES).numpy()] for side in sides)
    with tqdm(total=blocks_needed(len(real), len(generated)), desc="neighbours", disable=not c.progress) as bar:
        found = manifold_metrics(real, generated, tick=bar.update)
    counts = f"{len(generated):,} against {len(real):,}"
    return [
        Figure("precision", "precision", found.precision, note=f"k = {PRECISION_NEIGHBOURS}, {counts}"),
        Figure("recall", "recall", found.recall, note=f"k = {PRECISION_NEIGHBOURS}, {counts}"),
        Figure("density", "density", found.density, note=f"k = {DENSITY_NEIGHBOURS}, {counts}"),
        Figure("coverage", "coverage", found.coverage, note=f"k = {DENSITY_NEIGHBOURS}, {counts}"),
    ]


def inception(c: Comparison) -> list[Figure]:
    """Inception Score of the generated images alone."""
    found = inception_score(c.generated_features.logits)
    return [Figure("inception_score", "Inception Score", found.mean, found.std, f"± over {SPLITS} splits")]


def drift(c: Comparison) -> list[Figure]:
    """Mean colour of the generated images less the reference's."""
    found = channel_drift(c.generated_features.channel_means[:], c.reference_features.channel_means[:])
    names = ["grey"] if len(found.levels) == 1 else ["red", "green", "blue"]
    return [
        Figure(f"drift_{name}", f"drift of {name}", level, error, "levels of 0..255")
        for name, level, error in zip(names, found.levels, found.standard_errors, strict=True)
    ]


def cas(c: Comparison) -> list[Figure]:
    """Classification accuracy score, and what real training images give the same classifier."""
    found = classification_accuracy_score(c.generated, c.reference, c.test, c.progress)
    note = f"on {len(c.test):,} of {c.test.title}; {found.real:.2%} after training on as many real images"
    return [Figure("cas", "classification accuracy score", found.generated, note=note, detail={"real": found.real})]


def labelled_test(c: Comparison) -> None:
    """The test images are read by class."""
    if c.test.labels is None:
        raise UserError(f"cas needs classes, and {c.test.title} has none")


def memorisation(c: Comparison) -> list[Figure]:
    """Nearest training images of samples and of test images, by pixels and by features, and the closest pairs."""
    generated, rows = pixel_neighbours(c.generated, c.reference)
    by_pixels = audit(generated, pixel_neighbours(c.test, c.reference)[0])
    generated, test = (
        feature_neighbours(features.features, c.reference_features.features)
        for features in (c.generated_features, c.test_features)
    )
    by_features = audit(generated, test)
    pairs = ((by_pixels.generated, rows), (by_features.generated, rows))
    save_pairs(c.picture("closest-pairs"), c.generated, c.reference, *pairs)
    figures = []
    for how, found in (("pixels", by_pixels), ("features", by_features)):
        detail = {
            "nearest_distance": float(found.generated.distance.min()),
            "median_distance": float(np.median(found.generated.distance)),
            "median_test_distance": float(np.median(found.test.distance)),
        }
        expected = f"{QUANTILE:.0%} if none is copied"
        figures += [
            Figure(f"copies_{how}", f"suspected copies by {how}", found.share_below, note=expected, detail=detail),
            Figure(f"nearer_{how}", f"nearer than test images by {how}", found.nearer_than_test, note="0.5 if alike"),
        ]
    return figures


def nll(c: Comparison) -> list[Figure]:
    """Bits/dim of at most LIKELIHOOD_IMAGES test images by the variational bound, its terms and progressive coding."""
    rows = spread(len(c.test), LIKELIHOOD_IMAGES)
    labels = None if c.model.num_classes is None else matched(c.test, c.model.class_names)[rows]
    found = evaluate_likelihood(c.model, c.test[rows.numpy()], labels, progress=c.progress)
    plot_likelihood(found, c.picture("likelihood"))
    note = f"± standard error over {found.images:,} of {c.test.title}, {found.timesteps_per_image} timesteps each"
    detail = {
        "prior": found.prior,
        "terms": [asdict(term) for term in found.terms],
        "rate_distortion": found.rate_distortion,
    }
    return [Figure("nll", "bits/dim (bound)", found.bits_per_dim, found.standard_error, note, detail)]


def known_classes(c: Comparison) -> None:
    """A model with classes is told those of the test images."""
    if c.model.num_classes is not None and c.test.labels is None:
        raise UserError(f"nll of a class-conditional model needs classes, and {c.test.title} has none")


def _kid_title(c: Comparison) -> str:
    return "KID" if c.network.standard else f"KID ({c.network.name} features)"


def _subsets(found: KernelDistance) -> str:
    return f"{found.subsets} subsets of {found.subset_size:,}"


METRICS = {
    "fid": Metric(fid, check=enough_for_fid),
    "kid": Metric(kid, needs=("images",), least=2),
    "class_kid": Metric(class_kid, needs=("images", "labels"), least=2),
    "prdc": Metric(prdc, needs=("images",), least=DENSITY_NEIGHBOURS + 1),
    "is": Metric(inception, needs=("logits",), least=SPLITS),
    "drift": Metric(drift, needs=("images",), least=2),
    "cas": Metric(cas, needs=("images", "labels", "test"), check=labelled_test, uses=(SAMPLES,)),
    "nll": Metric(nll, needs=("model", "test"), check=known_classes, uses=()),
    "memorisation": Metric(memorisation, needs=("images", "test"), uses=(SAMPLES, FEATURES, TEST_FEATURES)),
}
DEFAULT = ("fid", "kid", "prdc", "is", "drift")  # those of them that the images and features allow


def find_metric(name: str) -> Metric:
    """The metric of this name; UserError with the nearest one otherwise."""
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, METRICS, 1)
    raise UserError(
        f"no metric {name!r}; {f'did you mean {near[0]}?' if near else f'there are {chr(44).join(METRICS)}'}"
    )
