"""The JSON schema of a configuration: what editors complete and check, judged by jsonschema."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml
from jsonschema import Draft202012Validator

from ddpm.cli import run
from ddpm.common.errors import UserError
from ddpm.training.config import Config, load_config, preset_names, validate
from ddpm.training.fields import annotated_yaml, json_schema

VALID = Draft202012Validator(json.loads(json_schema())).is_valid

WRONG = [
    {"data": {"sorce": "digits"}},
    {"data": {"channels": 5}},
    {"data": {"image_size": [28]}},
    {"data": {}, "diffusion": {"schedule": "cosin"}},
    {"data": {}, "network": {"dropout": 1.5}},
    {"data": {}, "training": {"steps": "many"}},
    {"data": {}, "training": {"loggers": ["paper"]}},
    {"data": {}, "sampling": {}},
    {},
]


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(json.loads(json_schema()))


@pytest.mark.parametrize("preset", preset_names())
def test_presets_and_what_is_written_from_them_are_valid(preset):
    config = load_config(preset)
    for text in (annotated_yaml(config), config.to_yaml()):
        assert VALID(yaml.safe_load(text))


@pytest.mark.parametrize("tree", WRONG, ids=str)
def test_the_schema_refuses_what_the_package_refuses(tree):
    assert not VALID(tree)
    with pytest.raises(UserError):
        validate(tree)


def test_the_first_line_of_what_is_written_leads_to_the_schema(capsys):
    assert run(["presets", "digits"]) == 0
    printed = capsys.readouterr().out
    for text in (printed, load_config("digits").to_yaml()):
        found = re.fullmatch(r"# yaml-language-server: \$schema=(file:\S+)", text.partition("\n")[0])
        assert found
        schema = json.loads(Path(unquote(urlparse(found[1]).path)).read_text(encoding="utf-8"))
        assert set(schema["properties"]) == set(Config.model_fields)


def test_the_schema_is_printed_and_every_field_is_described(capsys):
    assert run(["presets", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    sections = [schema["$defs"][entry["$ref"].rpartition("/")[2]] for entry in schema["properties"].values()]
    assert len(sections) == 4
    assert all(field.get("description") for section in sections for field in section["properties"].values())
