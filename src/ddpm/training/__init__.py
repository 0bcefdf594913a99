"""Training: from a configuration to a run directory."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.training.config import Config, TrainingConfig, load_config
    from ddpm.training.trainer import Evaluator, train

__all__ = ["Config", "Evaluator", "TrainingConfig", "load_config", "train"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Config": "ddpm.training.config",
        "Evaluator": "ddpm.training.trainer",
        "TrainingConfig": "ddpm.training.config",
        "load_config": "ddpm.training.config",
        "train": "ddpm.training.trainer",
    },
)
