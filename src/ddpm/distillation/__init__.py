"""Distillation: from a trained model to a student that samples in a few steps."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.distillation.config import StudentConfig
    from ddpm.distillation.distiller import distill, student_config

__all__ = ["StudentConfig", "distill", "student_config"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "StudentConfig": "ddpm.distillation.config",
        "distill": "ddpm.distillation.distiller",
        "student_config": "ddpm.distillation.distiller",
    },
)
