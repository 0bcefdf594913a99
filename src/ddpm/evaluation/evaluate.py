"""Evaluate a model, or a set of generated images, against real images; the report as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write, user_path
from ddpm.common.hardware import process_rank
from ddpm.evaluation.distances import Moments
from ddpm.evaluation.features import FeatureNetwork, load_features
from ddpm.evaluation.images import DatasetImages, GeneratedImages
from ddpm.evaluation.inputs import FEATURES, Comparison, Figure, Metric, uneven_classes
from ddpm.evaluation.metrics import METRICS, choose_metrics
from ddpm.evaluation.sources import describe, open_judged, open_reference, open_test
from ddpm.model import Model
from ddpm.samplers import find_sampler

# options of sampling that a card names beside sampler and steps, each with what goes without saying; the spacing does
# where it is the sampler's own
OPTIONS = {
    "guidance": (1.0,),
    "guidance_rescale": (0.0,),
    "eta": (0.0,),
    "variant": (),
    "clip": ("static",),
    "seed": (0,),
    "labels": ("all", None),
}


@dataclass(frozen=True)
class Report:
    """settings: how the figures were made; figures: in the order of the metrics; pictures: files drawn on the way."""

    settings: dict[str, Any]
    figures: list[Figure]
    pictures: list[Path]

    def value(self, key: str) -> float:
        """The figure of this key."""
        return next(figure.value for figure in self.figures if figure.key == key)

    def table(self) -> str:
        """Settings, then a line a figure."""
        lines = [f"{name.replace('_', ' '):<12} {_shown(value)}" for name, value in self.settings.items()]
        lines.append("")
        width = max((len(figure.title) for figure in self.figures), default=0)
        for figure in self.figures:
            error = "" if figure.error is None else f" ± {figure.error:.2g}"
            lines.append(f"{figure.title:<{width}}  {f'{figure.value:.5g}{error}':<22} {figure.note}".rstrip())
        lines += [f"picture: {path}" for path in self.pictures]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        figures = {figure.key: {k: v for k, v in asdict(figure).items() if k != "key"} for figure in self.figures}
        return {"settings": self.settings, "figures": figures, "pictures": [str(path) for path in self.pictures]}

    def for_card(self) -> dict[str, float]:
        """The figures of a model by titles that say how they were made, as its card shows them."""
        made = self.settings
        drawn = [f"{made['n']:,} images", f"{made['steps']} steps of {made['sampler']}"]
        usual = {"spacing": (find_sampler(made["sampler"]).spacing,), **OPTIONS}
        drawn += [f"{name} {made[name]}" for name in usual if name in made and made[name] not in usual[name]]
        how = ", ".join([*drawn, f"against {made['reference']}"])
        # the likelihood draws nothing; what it is of stands in its note
        return {f"{f.title}: {f.note if f.key == 'nll' else how}": f.value for f in self.figures}

    def save(self, path: Path) -> None:
        """Write the JSON."""
        path = user_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, (json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n").encode())


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


NUM = 10_000


def evaluate(
    judged: str | Model | DatasetImages,
    data: str,
    *,
    metrics: Sequence[str] | None = None,
    features: str | FeatureNetwork = "inception",
    num: int | None = None,
    test: str | None = None,
    force: bool = False,
    pictures: Path = Path("evaluation"),
    progress: bool = True,
    **sampling: Any,
) -> Report | None:
    """Judge `judged`, a model or a folder or .npz of images, against `data`, a SOURCE or ready moments.

    Args:
        metrics: names from `METRICS`; by default all of DEFAULT that `data` and the features allow.
        features: `inception`, `builtin`, or the path of a TorchScript file.
        num: how many images a model draws, 10,000 by default; images that were drawn before are all taken.
        test: real images that were not trained on, by default the test split of `data`.
        force: compute a biased FID, and label it, where it would be refused.
        pictures: the beginning of the names of pictures.
        sampling: for a model, the options of `Model.sample_batches`.

    Over several processes each does its share and only the first returns a report. Whatever is dear is kept in the
    cache, so a killed evaluation goes on, and one with more metrics or images starts from what is there.
    """
    title = judged if isinstance(judged, str) else None
    judged = open_judged(judged) if isinstance(judged, str) else judged
    comparison = Comparison(
        generated=as_images(judged, num, title, sampling),
        reference=open_reference(data, judged),
        load_network=lambda: load_features(features) if isinstance(features, str) else features,
        pictures=pictures,
        test=open_test(test, data, judged),
        judged_model=judged if isinstance(judged, Model) else None,
        force=force,
        progress=progress,
    )
    names = choose_metrics(comparison, metrics)
    uses = {use for name in names for use in METRICS[name].uses}
    comparison.prepare(uses)
    if process_rank()[0] != 0:
        return None
    shares = uneven_classes(comparison)
    figures = [figure for name in names for figure in compute(METRICS[name], comparison, shares)]
    network = comparison.network if FEATURES in uses else None
    return Report(describe_settings(comparison, data, network), figures, comparison.drawn)


def compute(metric: Metric, comparison: Comparison, shares: str) -> list[Figure]:
    """The metric's figures, each with the word on the shares of the classes where they are part of it."""
    figures = metric.compute(comparison)
    if not metric.mixture:
        return figures
    return [replace(figure, note="; ".join(filter(None, [figure.note, shares]))) for figure in figures]


def as_images(
    judged: Model | DatasetImages, num: int | None, title: str | None, sampling: dict[str, Any]
) -> DatasetImages | GeneratedImages:
    """What a model will draw, or the images as they are."""
    if isinstance(judged, Model):
        return GeneratedImages(judged, NUM if num is None else num, title, **sampling)
    if sampling or num is not None:
        raise UserError("the number of images, the sampler and its settings are for a model; these images are drawn")
    return judged


def describe_settings(c: Comparison, data: str, network: FeatureNetwork | None) -> dict[str, Any]:
    """All that a figure depends on, in the order it is shown."""
    settings: dict[str, Any] = {
        "judged": c.generated.title,
        "n": len(c.generated),
        "images": describe(c.generated.shape),
    }
    if isinstance(c.generated, GeneratedImages):
        drawn = {"labels": c.generated.labels_told, "evaluations": c.generated.evaluations}
        settings |= {**c.generated.settings, **drawn}
    kind = ""
    if isinstance(c.reference, Moments):
        kind = " (ready moments)"
    elif network is not None and c.ready_moments is not None:
        kind = " (with ready moments)"
    settings |= {"reference": data + kind, "reference_n": c.reference_n}
    if network is not None:
        settings |= {
            "features": f"{network.name}, {network.dimensions} dimensions, after {network.transform}",
            "features_hash": network.fingerprint[:12],
            "engine": network.engine,
        }
    return settings | {"ddpm": version("ddpm"), "torch": torch.__version__}
