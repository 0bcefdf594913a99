"""The inputs of a metric: candidate images, reference images, and the features of both."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddpm.common.errors import UserError
from ddpm.evaluation.classifier import matched, spread
from ddpm.evaluation.distances import Moments
from ddpm.evaluation.features import FeatureNetwork, Features, extract
from ddpm.evaluation.images import DatasetImages, GeneratedImages, ImageSet
from ddpm.evaluation.likelihood import Likelihood, evaluate_likelihood
from ddpm.model import Model

SAMPLES, FEATURES, HELD_OUT_FEATURES, LIKELIHOOD = "samples", "features", "held-out features", "likelihood"
LIKELIHOOD_IMAGES = 2000


@dataclass(frozen=True)
class Figure:
    """One number of the report.

    key: in the JSON; title: in the table; error: one standard error or deviation, as `note` says; detail: more for
    the JSON (a value a class, a curve).
    """

    key: str
    title: str
    value: float
    error: float | None = None
    note: str = ""
    detail: Any = None


@dataclass
class Comparison:
    """Judged against real images.

    Args:
        generated: what is judged.
        reference: real images, or ready moments of them.
        load_network: gives the feature network; called when first looked through.
        pictures: the beginning of the names of pictures.
        test: real images that were not trained on.
        judged_model: what drew `generated`, if a model did.
        force: give a biased FID a label instead of refusing it.

    `real`, `held_out`, `model` and `logits` are for metrics that cannot do without: a UserError says what is missing.
    """

    generated: ImageSet
    reference: ImageSet | Moments
    load_network: Callable[[], FeatureNetwork]
    pictures: Path
    test: ImageSet | None = None
    judged_model: Model | None = None
    force: bool = False
    progress: bool = True
    drawn: list[Path] = field(default_factory=list)

    @cached_property
    def network(self) -> FeatureNetwork:
        return self.load_network()

    @property
    def real(self) -> ImageSet:
        """The reference's images."""
        if isinstance(self.reference, Moments):
            raise UserError("needs the reference's images; mu and sigma are enough for fid alone")
        return self.reference

    @property
    def held_out(self) -> ImageSet:
        """Real images that were not trained on."""
        if self.test is None:
            raise UserError("needs held-out images: give --test SOURCE")
        return self.test

    @property
    def model(self) -> Model:
        """What drew the images."""
        if self.judged_model is None:
            raise UserError("needs a model, not images that were drawn before")
        return self.judged_model

    @cached_property
    def generated_features(self) -> Features:
        return extract(self.generated, self.network, self.progress)

    @cached_property
    def real_features(self) -> Features:
        return extract(self.real, self.network, self.progress)

    @cached_property
    def held_out_features(self) -> Features:
        return extract(self.held_out, self.network, self.progress)

    @cached_property
    def likelihood(self) -> Likelihood:
        """Of at most LIKELIHOOD_IMAGES held-out images, each with its class where the model has classes."""
        rows = spread(len(self.held_out), LIKELIHOOD_IMAGES)
        names = self.model.class_names
        labels = None if names is None else matched(self.held_out, names)[rows]
        return evaluate_likelihood(self.model, self.held_out[rows.numpy()], labels, progress=self.progress)

    @property
    def ready_moments(self) -> Moments | None:
        """The reference's, where it is or has some; beside images those alone that are of this network."""
        if isinstance(self.reference, Moments):
            return self.reference
        found = self.reference.moments
        return found if found is not None and found.dimensions == self.network.dimensions else None

    @property
    def reference_moments(self) -> Moments:
        return self.ready_moments or self.real_features.moments()

    @property
    def reference_n(self) -> int | None:
        """Images in the reference; None where ready moments do not say."""
        return self.reference.n if isinstance(self.reference, Moments) else len(self.reference)

    def prepare(self, uses: Iterable[str]) -> None:
        """Draw, extract and code: each process its share, the first returns when all shares are there."""
        if SAMPLES in uses:
            self.generated.prepare(self.progress)
        extracted = [self.generated] if FEATURES in uses else []
        if FEATURES in uses and not isinstance(self.reference, Moments):
            extracted.append(self.reference)
        if HELD_OUT_FEATURES in uses:
            extracted.append(self.held_out)
        for images in extracted:
            extract(images, self.network, self.progress)
        if LIKELIHOOD in uses:
            _ = self.likelihood

    def picture(self, name: str) -> Path:
        """Where a metric puts a picture of this name; the report lists it."""
        path = picture_path(self.pictures, name)
        self.drawn.append(path)
        return path


def picture_path(pictures: Path, name: str) -> Path:
    """The picture NAME of an evaluation whose pictures begin with `pictures`."""
    return pictures.with_name(f"{pictures.name}-{name}.png")


@dataclass(frozen=True)
class Metric:
    """A metric.

    compute: its function; needs: what it cannot do without, each a function that raises UserError where it is missing;
    least: images that either side must have; uses: what has to be drawn and extracted first; mixture: whether it is of
    all classes at once, in the shares that either side has them.
    """

    compute: Callable[[Comparison], list[Figure]]
    needs: Sequence[Callable[[Comparison], Any]] = ()
    least: int = 1
    uses: Sequence[str] = (SAMPLES, FEATURES)
    mixture: bool = False

    def lacks(self, comparison: Comparison) -> str | None:
        """What is missing for this metric, or None."""
        try:
            for need in self.needs:
                need(comparison)
        except UserError as missing:
            return str(missing)
        sides = {comparison.generated.title: len(comparison.generated), "the reference": comparison.reference_n}
        few = next((f"{title} has {n}" for title, n in sides.items() if n is not None and n < self.least), None)
        return f"needs at least {self.least} images, and {few}" if few else None


TOLD_FROM = 0.1  # total variation: the share of the images that would have to be of another class
SAME_WITHIN = 0.1  # of the larger share of a class


def uneven_classes(c: Comparison) -> str:
    """A note where a model draws its classes in other shares than the reference holds them, else an empty string."""
    drawn, reference = c.generated, c.reference
    if not isinstance(drawn, GeneratedImages) or drawn.labels is None or not isinstance(reference, DatasetImages):
        return ""
    held, names = reference.stored_labels, reference.class_names
    if held is None or names is None:
        return ""
    try:
        of_drawn = matched(drawn, names)
    except UserError:  # other classes than the reference's
        return ""
    ours, theirs = (labels.bincount(minlength=len(names)) / len(labels) for labels in (of_drawn, held))
    apart = (ours - theirs).abs()
    if apart.sum() / 2 <= TOLD_FROM:
        return ""
    others = int((apart > SAME_WITHIN * torch.maximum(ours, theirs)).sum())
    return (
        f"classes are drawn in turn, and the reference holds {others} of {len(names)} in another share: "
        "this figure includes that; --labels draws others"
    )
