"""Every field of a configuration in words: its type, range, default and description.

`ddpm train --help`, `ddpm presets NAME` and the configuration reference of the documentation are written from this.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ddpm.training.config import SCHEMA, Config, kind_of, presets_folder, schema_comment


@dataclass(frozen=True)
class FieldHelp:
    """One field in words: `kind` is its type or choices with its range, `default` is YAML."""

    section: str
    name: str
    kind: str
    default: str
    description: str

    @property
    def flag(self) -> str:
        return f"--{self.section}.{self.name}"


def sections() -> dict[str, str]:
    """Return the name and the description of each section."""
    return {name: _first_line(field.annotation) for name, field in Config.model_fields.items()}


def fields() -> Iterator[FieldHelp]:
    """Yield every field of every section, in order."""
    for section, outer in Config.model_fields.items():
        model: Any = outer.annotation
        for name, field in model.model_fields.items():
            default = as_yaml(field.get_default(call_default_factory=True))
            yield FieldHelp(section, name, kind_of(field), default, field.description or "")


def fields_help(values: Mapping[str, Mapping[str, Any]] | None = None, width: int = 100) -> str:
    """Return the flags of all fields for a terminal; `values` are a preset's, in place of the defaults."""
    lines: list[str] = []
    for section, title in sections().items():
        lines += ["", f"{title.rstrip('.')}:"]
        for field in fields():
            if field.section == section:
                given = (values or {}).get(section, {})
                shown = f"now {as_yaml(given[field.name])}" if field.name in given else f"default {field.default}"
                lines += [f"  {field.flag} ({field.kind}; {shown})", *_wrapped(field.description, "      ", width)]
    return "\n".join(lines).strip() + "\n"


def as_yaml(value: Any) -> str:
    """Return a value as one line of YAML, as a flag or a file takes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def annotated_yaml(config: Config) -> str:
    """Return a whole configuration as YAML with a comment per field.

    The first line names the schema of this installation: nobody knows yet in which folder the text will be.
    """
    schema = Path(str(presets_folder())).absolute().as_uri() + f"/{SCHEMA}"
    values, lines = config.model_dump(mode="json"), [schema_comment(schema).rstrip()]
    for section in sections():
        lines.append(f"{section}:")
        for field in fields():
            if field.section == section:
                entry = f"  {field.name}: {as_yaml(values[section][field.name])}"
                lines.append(f"{entry:<40} # {field.description}")
    return "\n".join(lines) + "\n"


def json_schema(kind: type[Config] = Config) -> str:
    """Return the JSON schema of a configuration, as text: what editors complete and check a YAML file by."""
    return json.dumps(kind.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def _first_line(model: Any) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
