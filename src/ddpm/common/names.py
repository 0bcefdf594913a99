"""The names that configurations and the command line accept; imported before PyTorch is, so that help is quick."""

from typing import Literal

VERSION = "0.2.0"  # of the package; pyproject.toml reads it here

BUNDLED_NAMES = ("digits", "digits4")  # of the models in the package, each in assets/NAME_model

ScheduleName = Literal["linear", "quadratic", "cosine", "sigmoid", "constant"]
PredictionName = Literal["epsilon", "x_0", "v"]
VarianceName = Literal["fixed_small", "fixed_large", "learned_range"]
LossName = Literal["simple", "l1", "huber", "vlb", "hybrid"]
WeightingName = Literal["none", "snr", "min_snr", "p2"]
TimestepSamplerName = Literal["uniform", "stratified", "loss_aware"]
SamplerName = Literal["ancestral", "ddim", "dpm++", "dpm++sde", "unipc", "heun"]
Spacing = Literal["trailing", "leading", "uniform", "quadratic", "log_snr"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

DEFAULT_SAMPLER: SamplerName = "dpm++sde"  # the best at 20 evaluations (docs/reports/speed.md)
DEFAULT_STEPS = 20
