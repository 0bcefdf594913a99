"""Training: a configuration becomes a run directory."""

from ddpm.training.config import Config, TrainingConfig, load_config
from ddpm.training.run import Evaluator
from ddpm.training.start import train

__all__ = ["Config", "Evaluator", "TrainingConfig", "load_config", "train"]
