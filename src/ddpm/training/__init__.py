"""Training: from a configuration to a run directory."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.training.config import Config as Config
    from ddpm.training.config import TrainingConfig as TrainingConfig
    from ddpm.training.config import load_config as load_config
    from ddpm.training.trainer import Evaluator as Evaluator
    from ddpm.training.trainer import train as train

__getattr__, __dir__, __all__ = lazy_exports(__name__)
