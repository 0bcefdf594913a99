"""`evaluate`: judge a model, or images that were drawn before, against real images."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddpm.errors import UserError
from ddpm.evaluation.comparison import FEATURES, Comparison
from ddpm.evaluation.features import FeatureNetwork, load_features
from ddpm.evaluation.frechet import Moments
from ddpm.evaluation.images import DatasetImages, GeneratedImages
from ddpm.evaluation.metrics import DEFAULT, METRICS, find_metric
from ddpm.evaluation.opening import describe, open_judged, open_reference, open_test
from ddpm.evaluation.report import Report
from ddpm.hardware import process_rank
from ddpm.model import Model

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
    looks = metrics is None or any(FEATURES in find_metric(name).uses for name in metrics)
    title = judged if isinstance(judged, str) else None
    judged = open_judged(judged) if isinstance(judged, str) else judged
    reference = open_reference(data, judged)
    if isinstance(judged, Model):
        generated = GeneratedImages(judged, NUM if num is None else num, title, **sampling)
    elif sampling or num is not None:
        raise UserError("the number of images, the sampler and its settings are for a model; these images are drawn")
    else:
        generated = judged
    network = None
    if looks:
        network = load_features(features) if isinstance(features, str) else features
    comparison = Comparison(
        generated=generated,
        reference=reference,
        network=network,
        pictures=pictures,
        test=open_test(test, data, reference, judged),
        model=judged if isinstance(judged, Model) else None,
        force=force,
        progress=progress,
    )
    names = list(metrics or (name for name in DEFAULT if METRICS[name].lacks(comparison) is None))
    for name in names:
        METRICS[name].require(comparison, name)
    comparison.prepare({use for name in names for use in METRICS[name].uses})
    if process_rank()[0] != 0:
        return None
    figures = [figure for name in names for figure in METRICS[name].compute(comparison)]
    return Report(describe_settings(comparison, data), figures, comparison.drawn)


def describe_settings(c: Comparison, data: str) -> dict[str, Any]:
    """All that a figure depends on, in the order it is shown."""
    network = c.network
    settings: dict[str, Any] = {
        "judged": c.generated.title,
        "n": len(c.generated),
        "images": describe(c.generated.shape),
    }
    if isinstance(c.generated, GeneratedImages):
        settings |= {**c.generated.settings, "evaluations": c.generated.evaluations}
    kind = " (ready moments)" if isinstance(c.reference, Moments) else ""
    settings |= {"reference": data + kind, "reference_n": c.reference_n}
    if network is not None:
        settings |= {
            "features": f"{network.name}, {network.dimensions} dimensions, after {network.transform}",
            "features_hash": network.fingerprint[:12],
            "engine": network.engine,
        }
    return settings | {"ddpm": version("ddpm"), "torch": torch.__version__}
