"""Evaluate models and images: distances between sets, likelihood, memorisation. `ddpm.evaluate` runs them all."""

from ddpm.evaluation.distances import frechet_distance, inception_score, kernel_distance, manifold_metrics
from ddpm.evaluation.evaluate import Report
from ddpm.evaluation.features import load_features
from ddpm.evaluation.likelihood import evaluate_likelihood
from ddpm.evaluation.metrics import METRICS
from ddpm.evaluation.training_eval import training_evaluator

__all__ = [
    "METRICS",
    "Report",
    "evaluate_likelihood",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_features",
    "manifold_metrics",
    "training_evaluator",
]
