"""The metrics. To add one, write a class here and add a line to `METRICS` at the end."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from ddpm.common.errors import UserError, nearest
from ddpm.evaluation.classifier import classification_accuracy_score
from ddpm.evaluation.distances import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    SPLITS,
    KernelDistance,
    blocks_needed,
    channel_drift,
    frechet_distance,
    inception_score,
    kernel_distance,
    level_fractions,
    manifold_metrics,
    misplaced_levels,
)
from ddpm.evaluation.image_sets import ImageSet, subset_rows
from ddpm.evaluation.inputs import EvaluationInputs, missing_requirement, picture_path
from ddpm.evaluation.likelihood import plot_likelihood
from ddpm.evaluation.memorisation import QUANTILE, audit, feature_neighbours, pixel_neighbours, save_pairs

CLASS_SUBSETS = 20
MANIFOLD_IMAGES = 10_000  # per side; the values depend on this number, since neighbours get closer as images are added


@dataclass(frozen=True)
class MetricValue:
    """One number of the report.

    key: its name in the JSON file; title: its name in the table; error: one standard error or deviation, as `note`
    says; detail: more for the JSON file (a value per class, a curve).
    """

    key: str
    title: str
    value: float
    error: float | None = None
    note: str = ""
    detail: Any = None


class Metric(ABC):
    """A metric, declared once.

    requires: what it cannot be computed without, names from `REQUIREMENTS`; min_images: for either side;
    mixes_classes: whether it compares all classes at once, so that class proportions change it; draws: the name of the
    picture that it draws, or "".
    """

    requires: ClassVar[frozenset[str]]
    min_images: ClassVar[int] = 1
    mixes_classes: ClassVar[bool] = False
    draws: ClassVar[str] = ""

    @abstractmethod
    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        """Return the metric's numbers; the inputs have all that it requires."""

    def missing(self, inputs: EvaluationInputs) -> str:
        """Return what the inputs lack for this metric, or an empty string."""
        if reason := missing_requirement(self.requires, inputs):
            return reason
        sides = {inputs.candidate.title: len(inputs.candidate), "the reference": inputs.reference_n}
        few = next((f"{title} has {n}" for title, n in sides.items() if n is not None and n < self.min_images), "")
        return f"needs at least {self.min_images} images, and {few}" if few else ""

    def evaluate(self, inputs: EvaluationInputs) -> list[MetricValue]:
        """Compute, check that every number is finite, and add the note on class proportions.

        Raises UserError for a number that is not finite.
        """
        found = self.compute(inputs)
        for one in found:
            if not math.isfinite(one.value) or not math.isfinite(one.error or 0):
                raise UserError(f"{one.title} is not finite: its features or images are damaged")
        note = inputs.proportions_note if self.mixes_classes else ""
        return [replace(one, note="; ".join(filter(None, [one.note, note]))) for one in found]


class Fid(Metric):
    """Fréchet distance between the features of the candidate and of the reference (Heusel et al. 2017)."""

    requires = frozenset({"samples", "features", "enough images"})
    mixes_classes = True

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        value = frechet_distance(inputs.candidate_features.moments(), inputs.reference_moments)
        fewest = min(len(inputs.candidate), inputs.reference_n or len(inputs.candidate))
        note = "" if fewest >= inputs.network.dimensions else f"BIASED: {fewest:,} images are too few"
        key = "fid" if inputs.network.standard else "frechet_distance"
        return [MetricValue(key, inputs.network.distance_name, value, note=note)]


class Kid(Metric):
    """Kernel distance over random subsets (Bińkowski et al. 2018)."""

    requires = frozenset({"samples", "features", "real images"})
    min_images = 2
    mixes_classes = True

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        found = kernel_distance(inputs.candidate_features.features, inputs.real_features.features)
        return [MetricValue("kid", _titled(inputs, "KID"), found.mean, found.std, _subsets_note(found))]


class ClassKid(Metric):
    """Kernel distance within each class of the candidate; the number is that of the worst class."""

    requires = frozenset({"samples", "features", "real images", "classes"})
    min_images = 2

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        real_labels, names = inputs.real.classes()
        labels = inputs.candidate.labels_in(names)
        found = {}
        for number in labels.unique().tolist():
            ours = inputs.candidate_features.features[np.flatnonzero(labels.numpy() == number)]
            theirs = inputs.real_features.features[np.flatnonzero(real_labels.numpy() == number)]
            if min(len(ours), len(theirs)) < 2:
                raise UserError(f"class_kid needs at least two images of class {names[number]} on both sides")
            found[names[number]] = kernel_distance(ours, theirs, subsets=CLASS_SUBSETS)
        worst = max(found, key=lambda name: found[name].mean)
        detail = {name: {"kid": value.mean, "std": value.std} for name, value in found.items()}
        title, note = f"worst class's {_titled(inputs, 'KID')}", f"class {worst}; all classes are in the JSON file"
        return [MetricValue("class_kid", title, found[worst].mean, found[worst].std, note, detail)]


class PrecisionRecall(Metric):
    """Precision, recall, density and coverage on at most MANIFOLD_IMAGES images per side."""

    requires = frozenset({"samples", "features", "real images"})
    min_images = DENSITY_NEIGHBOURS + 1

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        sides = [features.features for features in (inputs.real_features, inputs.candidate_features)]
        real, ours = (side[subset_rows(len(side), MANIFOLD_IMAGES).numpy()] for side in sides)
        with tqdm(total=blocks_needed(len(real), len(ours)), desc="neighbours", disable=not inputs.progress) as bar:
            found = manifold_metrics(real, ours, tick=bar.update)
        sizes = f"{len(ours):,} against {len(real):,}"
        few, more = f"k = {PRECISION_NEIGHBOURS}, {sizes}", f"k = {DENSITY_NEIGHBOURS}, {sizes}"
        notes = {"precision": few, "recall": few, "density": more, "coverage": more}
        return [
            MetricValue(name, _titled(inputs, name), getattr(found, name), note=note) for name, note in notes.items()
        ]


class InceptionScore(Metric):
    """Inception Score of the candidate alone (Salimans et al. 2016)."""

    requires = frozenset({"samples", "features", "logits"})
    min_images = SPLITS

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        mean, std = inception_score(inputs.candidate_features.logits)
        return [MetricValue("inception_score", "Inception Score", mean, std, f"± over {SPLITS} splits")]


class Drift(Metric):
    """Mean colour of the candidate minus that of the reference."""

    requires = frozenset({"samples", "features", "real images"})
    min_images = 2
    mixes_classes = True

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        sides = (inputs.candidate_features, inputs.real_features)
        levels, errors = channel_drift(*(features.channel_means[:] for features in sides))
        names = ["grey"] if len(levels) == 1 else ["red", "green", "blue"]
        return [
            MetricValue(f"drift_{name}", f"drift of {name}", level, error, "levels of 0..255")
            for name, level, error in zip(names, levels, errors, strict=True)
        ]


class Levels(Metric):
    """Fraction of pixels whose level would have to change for both histograms to be equal."""

    requires = frozenset({"samples", "real images"})
    mixes_classes = True

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        fractions = [level_fractions(_pixels(images)) for images in (inputs.candidate, inputs.real)]
        return [MetricValue("levels", "misplaced levels", misplaced_levels(*fractions), note="fraction of the pixels")]


class AccuracyScore(Metric):
    """Classification accuracy score (Ravuri & Vinyals 2019), and the same after training on real images."""

    requires = frozenset({"samples", "features", "real images", "classes", "held-out images", "held-out classes"})

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        ours, real, count = classification_accuracy_score(inputs.candidate, inputs.real, inputs.test, inputs.progress)
        note = (
            f"on {len(inputs.test):,} of {inputs.test.title}, after training on {count:,} samples; "
            f"{real:.2%} after training on as many real images"
        )
        title = "classification accuracy score"
        return [MetricValue("cas", title, ours, note=note, detail={"real": real})]


class Memorisation(Metric):
    """Distances from samples and from test images to their nearest training images, and the closest pairs."""

    requires = frozenset({"samples", "features", "real images", "held-out images", "held-out features"})
    draws = "closest-pairs"

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        ours, rows = pixel_neighbours(inputs.candidate, inputs.real)
        by_pixels = audit(ours, pixel_neighbours(inputs.test, inputs.real)[0])
        sides = (inputs.candidate_features, inputs.test_features)
        by_features = audit(*(feature_neighbours(side.features, inputs.real_features.features) for side in sides))
        pairs = ((by_pixels.generated, rows), (by_features.generated, rows))
        save_pairs(inputs.picture(self.draws), inputs.candidate, inputs.real, *pairs)
        network = inputs.network
        features = "features" if network.standard else f"{network.name} features"
        values = []
        for key, title, found in (("pixels", "pixels", by_pixels), ("features", features, by_features)):
            detail = {
                "nearest_distance": float(found.generated.distance.min()),
                "median_distance": float(np.median(found.generated.distance)),
                "median_test_distance": float(np.median(found.test.distance)),
            }
            expected, nearer = f"{QUANTILE:.0%} if none is copied", f"nearer than test images by {title}"
            values += [
                MetricValue(
                    f"copies_{key}", f"suspected copies by {title}", found.fraction_below, None, expected, detail
                ),
                MetricValue(f"nearer_{key}", nearer, found.nearer_than_test, note="0.5 if alike"),
            ]
        return values


class LikelihoodBound(Metric):
    """Bits/dim of the held-out images by the variational bound, its terms, and the rate-distortion curve."""

    requires = frozenset({"model", "held-out images", "likelihood"})
    draws = "likelihood"

    def compute(self, inputs: EvaluationInputs) -> list[MetricValue]:
        found = inputs.likelihood
        plot_likelihood(found, inputs.picture(self.draws))
        channels, height, width = inputs.test.shape
        note = (
            f"± standard error over {found.images:,} of {inputs.test.title}, {found.timesteps_per_image} timesteps "
            f"each; per dimension of the {height}×{width}×{channels} images that the model sees"
        )
        detail = {
            "dims": found.dims,
            "prior": found.prior,
            "terms": [asdict(term) for term in found.terms],
            "rate_distortion": found.rate_distortion,
        }
        return [MetricValue("nll", "bits/dim (bound)", found.bits_per_dim, found.standard_error, note, detail)]


METRICS: dict[str, Metric] = {
    "fid": Fid(),
    "kid": Kid(),
    "class_kid": ClassKid(),
    "prdc": PrecisionRecall(),
    "is": InceptionScore(),
    "drift": Drift(),
    "levels": Levels(),
    "cas": AccuracyScore(),
    "nll": LikelihoodBound(),
    "memorisation": Memorisation(),
}
DEFAULT = ("fid", "kid", "prdc", "is", "drift", "levels")


def choose_metrics(inputs: EvaluationInputs, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the metrics to compute, and the reason for each default metric that is left out.

    A metric that was asked for must be possible; the default ones are computed as far as data and features allow.

    Raises UserError if a metric that was asked for lacks something, if no default metric is possible, and by default
    also for images that have no features: one should then say what to compute instead.
    """
    chosen = list(names or DEFAULT)
    missing = {name: reason for name in chosen if (reason := find_metric(name).missing(inputs))}
    channels = missing_requirement({"features"}, inputs)
    for name, reason in missing.items():
        if names or reason == channels or len(missing) == len(chosen):
            raise UserError(f"{name} {reason}")
    return [name for name in chosen if name not in missing], missing


def pictures_of(names: Sequence[str] | None, pictures: Path) -> list[Path]:
    """Return the paths of the pictures that these metrics draw, given their path prefix."""
    drawn = (METRICS[name].draws for name in names or DEFAULT if name in METRICS)
    return [picture_path(pictures, name) for name in drawn if name]


def find_metric(name: str) -> Metric:
    """Return the metric of this name; UserError names the nearest one otherwise."""
    if name in METRICS:
        return METRICS[name]
    raise UserError(f"no metric {name!r}; {nearest(name, METRICS)}")


def _pixels(images: ImageSet) -> Iterator[np.ndarray]:
    """Yield uint8 (n, C, H, W) in chunks."""
    for start in range(0, len(images), images.chunk):
        yield images[slice(start, start + images.chunk)].numpy()


def _titled(inputs: EvaluationInputs, name: str) -> str:
    """Name the feature network in a title if it is not the standard one, whose values are those of publications."""
    return name if inputs.network.standard else f"{name} ({inputs.network.name} features)"


def _subsets_note(found: KernelDistance) -> str:
    if found.std is None:
        return f"no ±: all {found.subset_size:,} images of both sides are one subset"
    return f"± over {found.subsets} subsets of {found.subset_size:,}"
