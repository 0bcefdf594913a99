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
from ddpm.distillation.config import StudentConfig
from ddpm.training import train
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


def schema_of(folder: Path, text: str) -> dict:
    """Read the schema that the first line of a YAML file in `folder` names, as an editor does: a URI or a path."""
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.partition("\n")[0])
    assert found
    return json.loads((folder / unquote(urlparse(found[1]).path)).read_text(encoding="utf-8"))


def test_the_first_line_of_what_is_printed_leads_to_the_schema(tmp_path, capsys):
    assert run(["presets", "digits"]) == 0
    assert set(schema_of(tmp_path, capsys.readouterr().out)["properties"]) == set(Config.model_fields)


def test_a_run_holds_its_schema_wherever_it_moves(tmp_path, tiny):
    train(tiny(steps=1), tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    text = (moved / "config.yaml").read_text(encoding="utf-8")
    valid = Draft202012Validator(schema_of(moved, text)).is_valid
    assert valid(yaml.safe_load(text))
    assert not valid(yaml.safe_load(text) | {"sampling": {}})
    assert str(tmp_path) not in text.partition("\n")[0]
    train(tiny(steps=2), moved, overwrite=True)
    assert load_config(moved).training.steps == 2


def test_the_schema_of_a_student_knows_its_fifth_section():
    config = StudentConfig(**load_config("digits").model_dump(), distillation={"teacher": "digits"})
    valid = Draft202012Validator(json.loads(json_schema(StudentConfig))).is_valid
    assert valid(yaml.safe_load(config.to_yaml()))
    assert not valid(yaml.safe_load(config.to_yaml()) | {"distillation": {"steps": 4}})


def test_the_schema_is_printed_and_every_field_is_described(capsys):
    assert run(["presets", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    sections = [schema["$defs"][entry["$ref"].rpartition("/")[2]] for entry in schema["properties"].values()]
    assert len(sections) == 4
    assert all(field.get("description") for section in sections for field in section["properties"].values())
