"""Distillation: from a trained model to a student that samples in a few steps."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.distillation.config import DistillationConfig as DistillationConfig
    from ddpm.distillation.config import StudentConfig as StudentConfig
    from ddpm.distillation.distiller import distill as distill
    from ddpm.distillation.distiller import student_config as student_config

__getattr__, __dir__, __all__ = lazy_exports(__name__)
