"""The `distillation` section: a fifth one, which only the config.yaml of a distillation has. Free of PyTorch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ddpm.training.config import Config

Method = Literal["progressive", "consistency"]
DEFAULT_METHOD: Method = "progressive"


class DistillationConfig(BaseModel):
    """The `distillation` section: what the student learns from its teacher, and how."""

    model_config = ConfigDict(extra="forbid")

    teacher: str = Field(description="the model that teaches; a copy is in RUN/teacher")
    steps: int = Field(4, ge=1, description="sampling steps of the student")
    teacher_steps: int | None = Field(None, ge=2, description="sampling steps that the teacher shows first")
    method: Method = Field(DEFAULT_METHOD, description="how the student is taught")
    guidance: float = Field(1.0, description="classifier-free guidance of the teacher, which the student learns")


class StudentConfig(Config):
    """The configuration of a distillation."""

    distillation: DistillationConfig
