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

    reference: real images, or ready moments of them; network: None where no metric looks at features; test: real images
    that were not trained on; model: what drew `generated`, if anything; force: give a biased FID a label instead of
    refusing it; pictures: the beginning of the names of pictures.
    """

    generated: ImageSet
    reference: ImageSet | Moments
    network: FeatureNetwork | None
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
    least: images that either side must have; check: UserError where it would say nothing; uses: what has to be drawn
    and extracted first.
    """

    compute: Callable[[Comparison], list[Figure]]
    needs: Sequence[str] = ()
    least: int = 1
    check: Callable[[Comparison], None] = lambda comparison: None
    uses: Sequence[str] = (SAMPLES, FEATURES)

    def lacks(self, comparison: Comparison) -> str | None:
        """What is missing for this metric, or None."""
        return next((reason for need in self.needs if (reason := MISSING[need](comparison))), None)

    def require(self, comparison: Comparison, name: str) -> None:
        """UserError where something is missing."""
        if reason := self.lacks(comparison):
            raise UserError(f"{name} needs {reason}")
        for title, n in (
            (comparison.generated.title, len(comparison.generated)),
            ("the reference", comparison.reference_n),
        ):
            if n is not None and n < self.least:
                raise UserError(f"{name} needs at least {self.least} images, and {title} has {n}")
        self.check(comparison)


def _unlabelled(c: Comparison) -> str | None:
    sides = (images for images in (c.generated, c.reference) if not isinstance(images, Moments))
    return next((f"classes, and {images.title} has none" for images in sides if images.labels is None), None)


def _no_logits(c: Comparison) -> str | None:
    return f"class logits, and the {c.network.name} features have none" if c.network.classes == 0 else None


MISSING: dict[str, Callable[[Comparison], str | None]] = {
    "images": lambda c: (
        "the reference's images; mu and sigma are enough for fid alone" if isinstance(c.reference, Moments) else None
    ),
    "labels": _unlabelled,
    "test": lambda c: "held-out images: give --test SOURCE" if c.test is None else None,
    "model": lambda c: "a model, not images that were drawn before" if c.model is None else None,
    "logits": _no_logits,
}
