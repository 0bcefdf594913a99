"""Training: a configuration becomes a run directory."""

from ddpm.training.config import Config, TrainingConfig, load_config
from ddpm.training.trainer import Evaluator, train

__all__ = ["Config", "Evaluator", "TrainingConfig", "load_config", "train"]
