"""Evaluate models and images: distances between sets, likelihood, memorisation. `ddpm.evaluate` runs them all."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.evaluation.distances import frechet_distance as frechet_distance
    from ddpm.evaluation.distances import inception_score as inception_score
    from ddpm.evaluation.distances import kernel_distance as kernel_distance
    from ddpm.evaluation.distances import manifold_metrics as manifold_metrics
    from ddpm.evaluation.evaluate import Report as Report
    from ddpm.evaluation.features import load_features as load_features
    from ddpm.evaluation.likelihood import evaluate_likelihood as evaluate_likelihood
    from ddpm.evaluation.metrics import METRICS as METRICS
    from ddpm.evaluation.training_eval import training_evaluator as training_evaluator

__getattr__, __dir__, __all__ = lazy_exports(__name__)
