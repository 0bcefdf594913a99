"""The inputs of a metric: candidate images, reference images, the features of both, and what a metric may require."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ddpm.common.errors import UserError
from ddpm.evaluation.distances import Moments
from ddpm.evaluation.features import FeatureNetwork, Features, extract
from ddpm.evaluation.image_sets import DatasetImages, GeneratedImages, ImageSet, subset_rows
from ddpm.evaluation.likelihood import Likelihood, evaluate_likelihood
from ddpm.model import Model

LIKELIHOOD_IMAGES = 2000
PROPORTIONS_DIFFER = 0.1  # total variation distance from which a note is given
SAME_WITHIN = 0.1  # relative to the larger proportion of a class


@dataclass
class EvaluationInputs:
    """The candidate, the real images that it is compared with, and everything computed from them, each once.

    Args:
        candidate: the images to evaluate.
        reference: real images, or precomputed statistics of their features.
        load_network: returns the feature network; called when features are first needed.
        pictures: path prefix of the pictures that metrics draw.
        held_out: real images that were not trained on, or None.
        model: the model that samples `candidate`, or None.
        force: compute FID on too few images, and mark it as biased.

    A metric uses only what it requires, see `REQUIREMENTS`; the rest may be missing.
    """

    candidate: ImageSet
    reference: ImageSet | Moments
    load_network: Callable[[], FeatureNetwork]
    pictures: Path
    held_out: ImageSet | None = None
    model: Model | None = None
    force: bool = False
    progress: bool = True
    drawn: list[Path] = field(default_factory=list)

    @cached_property
    def network(self) -> FeatureNetwork:
        return self.load_network()

    @property
    def real(self) -> ImageSet:
        """The reference's images; for metrics that require real images."""
        assert isinstance(self.reference, ImageSet)
        return self.reference

    @property
    def test(self) -> ImageSet:
        """The held-out images; for metrics that require them."""
        assert self.held_out is not None
        return self.held_out

    @cached_property
    def candidate_features(self) -> Features:
        return extract(self.candidate, self.network, self.progress)

    @cached_property
    def real_features(self) -> Features:
        return extract(self.real, self.network, self.progress)

    @cached_property
    def test_features(self) -> Features:
        return extract(self.test, self.network, self.progress)

    @cached_property
    def likelihood(self) -> Likelihood:
        """The bound for at most LIKELIHOOD_IMAGES held-out images, each with its class if the model has classes."""
        assert self.model is not None
        rows = subset_rows(len(self.test), LIKELIHOOD_IMAGES)
        names = self.model.class_names
        labels = None if names is None else self.test.labels_in(names)[rows]
        return evaluate_likelihood(self.model, self.test[rows.numpy()], labels, progress=self.progress)

    @property
    def precomputed_moments(self) -> Moments | None:
        """The reference's precomputed statistics. Those stored with images count if they fit the feature network."""
        if isinstance(self.reference, Moments):
            return self.reference
        found = self.reference.moments
        return found if found is not None and found.dimensions == self.network.dimensions else None

    @property
    def reference_moments(self) -> Moments:
        return self.precomputed_moments or self.real_features.moments()

    @property
    def reference_n(self) -> int | None:
        """The number of images in the reference; None if precomputed statistics do not say."""
        return self.reference.n if isinstance(self.reference, Moments) else len(self.reference)

    def prepare(self, requirements: Iterable[str]) -> None:
        """Sample, extract features and compute the likelihood. Every process calls it and does its share."""
        needed = set(requirements)
        if needed & {"samples", "features"}:
            self.candidate.prepare(self.progress)
        if "features" in needed:
            _ = self.candidate_features
            if not isinstance(self.reference, Moments):
                _ = self.real_features
        if "held-out features" in needed:
            _ = self.test_features
        if "likelihood" in needed:
            _ = self.likelihood

    def picture(self, name: str) -> Path:
        """Return the path for a picture of this name, and list it in the report."""
        path = picture_path(self.pictures, name)
        self.drawn.append(path)
        return path

    @cached_property
    def proportions_note(self) -> str:
        """A note if a model samples its classes in other proportions than the reference has, else an empty string."""
        candidate, reference = self.candidate, self.reference
        if not isinstance(candidate, GeneratedImages) or not isinstance(reference, DatasetImages):
            return ""
        labels, names = reference.stored_labels, reference.class_names
        if candidate.labels is None or labels is None or names is None:
            return ""
        try:
            sampled = candidate.labels_in(names)
        except UserError:  # other classes than the reference's
            return ""
        ours, theirs = (numbers.bincount(minlength=len(names)) / len(numbers) for numbers in (sampled, labels))
        difference = (ours - theirs).abs()
        if difference.sum() / 2 <= PROPORTIONS_DIFFER:
            return ""
        others = int((difference > SAME_WITHIN * torch.maximum(ours, theirs)).sum())
        return (
            f"includes a difference in class proportions: {others} of {len(names)} classes are more or less frequent "
            "in the reference; --labels changes the proportions"
        )


def picture_path(pictures: Path, name: str) -> Path:
    """Return the path of the picture NAME of an evaluation with the path prefix `pictures`."""
    return pictures.with_name(f"{pictures.name}-{name}.png")


def _grey_or_colour(inputs: EvaluationInputs) -> str:
    channels = inputs.candidate.shape[0]
    if channels in (1, 3):
        return ""
    return (
        f"needs grey or colour images, and {inputs.candidate.title} has {channels} channels: take levels, nll, "
        "which do not use features"
    )


def _real_images(inputs: EvaluationInputs) -> str:
    if isinstance(inputs.reference, ImageSet):
        return ""
    return "needs the reference's images; precomputed statistics are enough for fid alone"


def _full_rank(inputs: EvaluationInputs) -> str:
    """Fewer images than dimensions make the covariance singular and the distance far too large."""
    reference, dimensions = inputs.reference, inputs.network.dimensions
    if isinstance(reference, Moments) and reference.dimensions != dimensions:
        return (
            f"needs features of the reference's {reference.dimensions} dimensions; {inputs.network.name} has "
            f"{dimensions}: both sides need the same network"
        )
    for title, n in (("the reference", inputs.reference_n), (inputs.candidate.title, len(inputs.candidate))):
        if n is not None and n < dimensions and not inputs.force:
            return (
                f"needs as many images as feature dimensions, {dimensions:,}, and {title} has {n:,}: "
                "use more images, or kid, which needs fewer; --force computes it and marks it as biased"
            )
    return ""


def _logits(inputs: EvaluationInputs) -> str:
    network = inputs.network
    return "" if network.classes else f"needs class logits, and the {network.name} features have none"


def _likelihood(inputs: EvaluationInputs) -> str:
    """A model with classes gets those of the held-out images."""
    assert inputs.model is not None
    names = inputs.model.class_names
    return "" if names is None else _class_problem(inputs.test, names)


def _class_problem(images: ImageSet, others: ImageSet | list[str]) -> str:
    """Return why `images` cannot be labelled with the classes of `others`, or an empty string."""
    try:
        images.labels_in(others if isinstance(others, list) else others.classes()[1])
    except UserError as problem:
        return str(problem)
    return ""


# What a metric may require: a check that returns what is missing, or an empty string. Checked in this order, so a
# check may rely on those above it if the metric requires these too.
REQUIREMENTS: dict[str, Callable[[EvaluationInputs], str]] = {
    "samples": lambda inputs: "",  # there is always a candidate; the entry says that its images are needed
    "features": _grey_or_colour,
    "real images": _real_images,
    "enough images": _full_rank,
    "logits": _logits,
    "classes": lambda inputs: _class_problem(inputs.candidate, inputs.real),
    "model": lambda inputs: "" if inputs.model else "needs a model, not images that were sampled before",
    "held-out images": lambda inputs: (
        "" if inputs.held_out is not None else "needs held-out images: give --test SOURCE"
    ),
    "held-out features": lambda inputs: "",
    "held-out classes": lambda inputs: _class_problem(inputs.candidate, inputs.test),
    "likelihood": _likelihood,
}


def missing_requirement(requires: Iterable[str], inputs: EvaluationInputs) -> str:
    """Return what the inputs lack for these requirements, or an empty string."""
    required = set(requires)
    if unknown := required - set(REQUIREMENTS):
        raise ValueError(f"unknown requirements {sorted(unknown)}")
    reasons = (check(inputs) for name, check in REQUIREMENTS.items() if name in required)
    return next((reason for reason in reasons if reason), "")
