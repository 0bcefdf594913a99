"""What a metric is given: the images that are judged, those they are compared with, and the features of both."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm.errors import UserError
from ddpm.evaluation.extract import Features, extract
from ddpm.evaluation.features import FeatureNetwork
from ddpm.evaluation.frechet import Moments
from ddpm.evaluation.images import ImageSet
from ddpm.model import Model

SAMPLES, FEATURES, TEST_FEATURES = "samples", "features", "test features"


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

    reference: real images, or ready moments of them; test: real images that were not trained on; model: what drew
    `generated`, if anything; force: give a biased FID a label instead of refusing it; pictures: the beginning of the
    names of pictures.
    """

    generated: ImageSet
    reference: ImageSet | Moments
    network: FeatureNetwork
    pictures: Path
    test: ImageSet | None = None
    model: Model | None = None
    force: bool = False
    progress: bool = True
    drawn: list[Path] = field(default_factory=list)

    @cached_property
    def generated_features(self) -> Features:
        return extract(self.generated, self.network, self.progress)

    @cached_property
    def reference_features(self) -> Features:
        return extract(self.reference, self.network, self.progress)

    @cached_property
    def test_features(self) -> Features:
        return extract(self.test, self.network, self.progress)

    def prepare(self, uses: Iterable[str]) -> None:
        """Draw and extract: each process its share, the first returns when all shares are there."""
        if SAMPLES in uses:
            self.generated.prepare(self.progress)
        if FEATURES in uses:
            _ = self.generated_features, isinstance(self.reference, Moments) or self.reference_features
        if TEST_FEATURES in uses:
            _ = self.test_features

    @property
    def reference_n(self) -> int | None:
        """Images in the reference; None where ready moments do not say."""
        return self.reference.n if isinstance(self.reference, Moments) else len(self.reference)

    @property
    def reference_moments(self) -> Moments:
        return self.reference if isinstance(self.reference, Moments) else self.reference_features.moments()

    def picture(self, name: str) -> Path:
        """Where a metric puts a picture of this name; the report lists it."""
        path = self.pictures.with_name(f"{self.pictures.name}-{name}.png")
        self.drawn.append(path)
        return path


@dataclass(frozen=True)
class Metric:
    """A metric.

    compute: its function; needs: what it cannot do without, of "images", "labels", "test", "model" and "logits";
    check: UserError where it would say nothing; uses: what has to be drawn and extracted first.
    """

    compute: Callable[[Comparison], list[Figure]]
    needs: Sequence[str] = ()
    check: Callable[[Comparison], None] = lambda comparison: None
    uses: Sequence[str] = (SAMPLES, FEATURES)

    def lacks(self, comparison: Comparison, name: str) -> str | None:
        """One line that says what is missing for this metric, or None."""
        c = comparison
        labelled = [c.generated, *(() if isinstance(c.reference, Moments) else (c.reference,))]
        unlabelled = next((images.title for images in labelled if images.labels is None), None)
        reasons = {
            "images": (
                "the reference's images; mu and sigma are enough for fid alone",
                isinstance(c.reference, Moments),
            ),
            "labels": (f"classes, and {unlabelled} has none", unlabelled is not None),
            "test": ("held-out images: give --test SOURCE", c.test is None),
            "model": ("a model, not images that were drawn before", c.model is None),
            "logits": (f"class logits, and the {c.network.name} features have none", c.network.classes == 0),
        }
        return next((f"{name} needs {reasons[need][0]}" for need in self.needs if reasons[need][1]), None)

    def require(self, comparison: Comparison, name: str) -> None:
        """UserError where something is missing."""
        if reason := self.lacks(comparison, name):
            raise UserError(reason)
        self.check(comparison)
