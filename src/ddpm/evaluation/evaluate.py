"""Evaluate a model, or a set of images, against real images; the report as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ddpm.common.distributed import is_main
from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write
from ddpm.common.names import VERSION
from ddpm.evaluation.distances import Moments
from ddpm.evaluation.features import FeatureNetwork, load_features
from ddpm.evaluation.image_sets import DatasetImages, GeneratedImages
from ddpm.evaluation.inputs import EvaluationInputs
from ddpm.evaluation.metrics import METRICS, MetricValue, choose_metrics
from ddpm.evaluation.opening import format_shape, open_candidate, open_reference, open_test
from ddpm.model import Model, SamplingOptions

OPTIONS = [option.name for option in fields(SamplingOptions)]
DEFAULT_NUM = 10_000  # images that a model samples


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    settings: everything that the numbers depend on; metrics: the numbers, in the order asked for; pictures: files
    that metrics drew; left_out: default metrics that were not possible, with the reason; defaults: sampling options
    that have their default value, which the table and the card leave out.
    """

    settings: dict[str, Any]
    metrics: list[MetricValue]
    pictures: list[Path]
    left_out: dict[str, str] = field(default_factory=dict)
    defaults: Sequence[str] = ()

    def value(self, key: str) -> float:
        """Return the number with this key."""
        return next(one.value for one in self.metrics if one.key == key)

    def table(self) -> str:
        """Return the settings, then one line per number, then pictures and metrics left out."""
        shown = {name: value for name, value in self.settings.items() if name not in self.defaults}
        lines = [f"{name.replace('_', ' '):<12} {_with_commas(value)}" for name, value in shown.items()]
        lines.append("")
        width = max((len(one.title) for one in self.metrics), default=0)
        for one in self.metrics:
            error = "" if one.error is None else f" ± {one.error:.2g}"
            lines.append(f"{one.title:<{width}}  {f'{one.value:.5g}{error}':<22} {one.note}".rstrip())
        lines += [f"picture: {path}" for path in self.pictures]
        lines += [f"not computed: {name} {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, the numbers by their keys."""
        metrics = {one.key: {k: v for k, v in asdict(one).items() if k != "key"} for one in self.metrics}
        pictures = [str(path) for path in self.pictures]
        return {"settings": self.settings, "metrics": metrics, "pictures": pictures, "left_out": self.left_out}

    def for_card(self) -> dict[str, float]:
        """Return a model's numbers for its card, with titles that say how they were made.

        Sampling options are listed if they differ from their defaults, except the batch size.
        """
        made = self.settings
        parts = [f"{made['n']:,} images", f"{made['steps']} steps of {made['sampler']}"]
        unlisted = {"sampler", "steps", "batch_size", *self.defaults}
        parts += [f"{name} {made[name]}" for name in OPTIONS if name in made and name not in unlisted]
        parts.append(" ".join(filter(None, [f"against {made['reference']}", made.get("reference_fit")])))
        how = ", ".join(parts)
        # the likelihood does not depend on samples; its note says what it depends on
        return {f"{f.title}: {f.note if f.key == 'nll' else how}": f.value for f in self.metrics}

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _with_commas(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def evaluate(
    candidate: str | Model | DatasetImages,
    data: str,
    options: SamplingOptions | None = None,
    *,
    metrics: Sequence[str] | None = None,
    features: str | FeatureNetwork = "inception",
    num: int | None = None,
    test: str | None = None,
    fit: str | None = None,
    force: bool = False,
    pictures: Path = Path("evaluation"),
    progress: bool = True,
    **changes: Any,
) -> Report | None:
    """Evaluate a model, or a folder or .npz of images, against real images or precomputed statistics of them.

    Expensive results are cached on disk, so a killed evaluation resumes, and one with more metrics or images starts
    from the results that exist. With several processes, each does its share and only the first returns a report.

    Args:
        candidate: what is evaluated: a model, its name, or the SOURCE of images.
        data: the real images, a SOURCE; or an .npz of precomputed statistics (mu, sigma, n).
        options: for a model, how to sample; `changes` are fields that replace those of `options`.
        metrics: names from `METRICS`; by default those of `DEFAULT` that data and features allow.
        features: "inception", "builtin", or the path of a TorchScript file.
        num: the number of images that a model samples, by default 10,000; existing images are all used.
        test: real images that were not trained on, by default the test split of `data`.
        fit: "crop" or "pad": how real images are brought to the candidate's size. By default a model's training data
            decides, and real images must have the size of existing images.
        force: compute FID on too few images and mark it as biased, instead of refusing it.
        pictures: path prefix of the pictures that metrics draw.

    Raises UserError if a source cannot be used, a requested metric is not possible, or a number is not finite.
    """
    title = candidate if isinstance(candidate, str) else None
    opened = open_candidate(candidate) if isinstance(candidate, str) else candidate
    if not isinstance(opened, Model) and (options is not None or changes or num is not None):
        raise UserError("the number of images and the sampling options are for a model, and these are images")
    inputs = EvaluationInputs(
        candidate=GeneratedImages(opened, DEFAULT_NUM if num is None else num, title, options, **changes)
        if isinstance(opened, Model)
        else opened,
        reference=open_reference(data, opened, fit),
        load_network=lambda: load_features(features) if isinstance(features, str) else features,
        pictures=pictures,
        held_out=open_test(test, data, opened, fit),
        model=opened if isinstance(opened, Model) else None,
        force=force,
        progress=progress,
    )
    names, left_out = choose_metrics(inputs, metrics)
    requirements = {requirement for name in names for requirement in METRICS[name].requires}
    inputs.prepare(requirements)
    if not is_main():
        return None
    values = [one for name in names for one in METRICS[name].evaluate(inputs)]
    settings = _settings(inputs, data, fit, inputs.network if "features" in requirements else None)
    defaults = inputs.candidate.default_options if isinstance(inputs.candidate, GeneratedImages) else ()
    return Report(settings, values, inputs.drawn, left_out, defaults)


def _settings(inputs: EvaluationInputs, data: str, fit: str | None, network: FeatureNetwork | None) -> dict[str, Any]:
    """Return everything that the numbers depend on, in the order of the table."""
    candidate, reference = inputs.candidate, inputs.reference
    settings: dict[str, Any] = {
        "candidate": candidate.title,
        "n": len(candidate),
        "images": format_shape(candidate.shape),
    }
    if isinstance(candidate, GeneratedImages):
        settings |= {**candidate.settings, "evaluations": candidate.evaluations}
    kind = ""
    if isinstance(reference, Moments):
        kind = " (precomputed statistics)"
    elif network is not None and inputs.precomputed_moments is not None:
        kind = " (with precomputed statistics)"
    settings |= {"reference": data + kind, "reference_n": inputs.reference_n}
    if fit is not None:
        settings["reference_fit"] = f"{fit} to {candidate.shape[1]}×{candidate.shape[2]}"
    if network is not None:
        settings |= {
            "features": f"{network.name}, {network.dimensions} dimensions, after {network.transform}",
            "features_hash": network.fingerprint[:12],
            "engine": network.engine,
        }
    return settings | {"ddpm": VERSION, "torch": torch.__version__}
