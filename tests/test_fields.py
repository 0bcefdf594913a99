"""Every configuration field: its default, and the least and the greatest value that it takes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from ddpm.distillation.config import DistillationConfig, StudentConfig
from ddpm.training.config import Config
from ddpm.training.fields import json_schema

NARROW = {"groups": 1, "channel_mult": [4], "freq_shift": 0}  # a network that may have one channel
LIMITS = {  # field -> values that are taken, values beyond them that are refused, and what else must be set
    "data.image_size": ([8, 4096, [8, 4096]], [7, 4097, [7, 8], [8, 4097], [8], [8, 8, 8]], {}),
    "data.channels": ([1, 4], [0, 5], {}),
    "data.background": ([0, 255, [0, 255, 0]], [-1, 256, [0, 0, 256], [-1, 0, 0], [0, 0]], {}),
    "data.shuffle_buffer": ([1], [0], {}),
    "diffusion.timesteps": ([2], [1], {}),
    "diffusion.beta_start": ([1e-9], [0, 1 + 1e-6], {}),
    "diffusion.beta_end": ([1e-9, 1], [0, 1 + 1e-6], {"timesteps": 2, "prediction": "v"}),
    "diffusion.betas": ([[1e-9, 1]], [[0.5], [0, 0.5], [0.5, 1 + 1e-6]], {"prediction": "v"}),
    "diffusion.min_snr_gamma": ([1e-9], [0], {}),
    "diffusion.p2_gamma": ([0], [-1e-6], {}),
    "diffusion.p2_k": ([1e-9], [0], {}),
    "network.channels": ([1], [0], NARROW),
    "network.time_channels": ([2], [1], {"freq_shift": -1}),
    "network.channel_mult": ([[1]], [[]], {}),
    "network.blocks": ([1], [0], {}),
    "network.head_dim": ([1], [0], {}),
    "network.heads": ([1], [0], {}),
    "network.dropout": ([0, 1 - 1e-6], [-1e-6, 1], {}),
    "network.groups": ([1], [0], {}),
    "network.norm_eps": ([1e-12], [0], {}),
    "training.steps": ([1], [0], {}),
    "training.batch_size": ([1], [0], {}),
    "training.learning_rate": ([1e-12], [0], {}),
    "training.warmup": ([0], [-1], {}),
    "training.grad_clip": ([1e-12], [0], {}),
    "training.ema_decay": ([0, 1 - 1e-6], [-1e-6, 1], {}),
    "training.class_drop": ([0, 1 - 1e-6], [-1e-6, 1], {}),
    "training.seed": ([0], [-1], {}),
    "training.micro_batch": ([1], [0], {}),
    "training.checkpoint_every": ([1], [0], {}),
    "training.keep_checkpoints": ([1], [0], {}),
    "training.log_every": ([1], [0], {}),
    "training.preview_every": ([0], [-1], {}),
    "training.preview_images": ([1], [0], {}),
    "training.preview_steps": ([1], [0], {}),
    "training.evaluate_every": ([0], [-1], {}),
    "training.max_bad_steps": ([0], [-1], {}),
    "distillation.steps": ([1], [0], {"teacher": "digits"}),
    "distillation.teacher_steps": ([2], [1], {"teacher": "digits"}),
}


def test_every_field_with_a_limit_has_a_row():
    definitions = json.loads(json_schema(StudentConfig))["$defs"]
    limited = {
        f"{name}.{field}"
        for name, section in StudentConfig.model_fields.items()
        for field, schema in definitions[section.annotation.__name__]["properties"].items()
        if re.search("inimum|aximum|minItems", json.dumps(schema))
    }
    assert limited == set(LIMITS)


@pytest.mark.parametrize("field", LIMITS)
def test_field_takes_its_limits_and_nothing_beyond(field):
    taken, refused, others = LIMITS[field]
    section, name = field.split(".")
    build = StudentConfig.model_fields[section].annotation
    for value in taken:
        found = getattr(build(**others, **{name: value}), name)
        assert found == (tuple(value) if isinstance(found, tuple) else value)
    for value in refused:
        with pytest.raises(ValidationError) as error:
            build(**others, **{name: value})
        assert {finding["loc"][0] for finding in error.value.errors()} == {name}


def test_defaults_are_those_of_the_reference():
    """docs/reference/configuration.md says what a user gets who sets nothing."""
    page = (Path(__file__).parent.parent / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    said = {}
    for section, table in re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        for name, default in re.findall(r"^\| `(\w+)` \|.*?[^\\]\| `(.*?)` \|", table, re.MULTILINE):
            said[f"{section}.{name}"] = yaml.safe_load(default)
    defaults = {
        f"{name}.{field}": info.get_default(call_default_factory=True)
        for name, section in Config.model_fields.items()
        for field, info in section.annotation.model_fields.items()
    }
    assert said == defaults


def test_defaults_of_a_distillation():
    found = DistillationConfig(teacher="digits").model_dump()
    expected = {"teacher": "digits", "steps": 4, "teacher_steps": None, "method": "progressive", "guidance": 1.0}
    assert found == expected
