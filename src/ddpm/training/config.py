"""The configuration of a run: four sections of fields, read from a preset or a YAML file plus overrides.

Reading is strict: an unknown name, a key that appears twice or a value out of range is a UserError of one line.
"""

import codecs
import re
import types
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from ddpm.common.errors import UserError, nearest
from ddpm.common.files import user_path
from ddpm.common.names import Precision
from ddpm.data.config import DataConfig
from ddpm.diffusion.config import DiffusionConfig
from ddpm.networks.config import NetworkConfig

MAX_FILE_BYTES = 1 << 20  # a configuration is a page of text; a larger file is of another kind
# the longer marks first: that of UTF-32 begins like that of UTF-16
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
MARKS |= {codecs.BOM_UTF16_BE: "utf-16"}
MAX_DEPTH = 20  # of nested YAML
NEAR = 0.5  # similarity from which a name is suggested; less than difflib's 0.6, because field names are long
SCIENTIFIC = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+")  # text in YAML 1.1 unless it has a point and a sign
SCHEMA = "config.schema.json"  # the JSON schema, beside the presets (tools/make_reference.py writes it) and in each run
VISIBLE_SIGNAL = 0.01  # ᾱ_T above which x_T still shows the image: 10% of its amplitude

RENAMED = {  # names in configurations written before version 0.2
    "process": "diffusion",
    "diffusion.timestep_draw": "diffusion.timestep_sampler",
    "training.decay": "training.lr_schedule",
    "training.clip": "training.grad_clip",
    "training.ema": "training.ema_decay",
    "training.keep": "training.keep_checkpoints",
    "training.track": "training.loggers",
    "training.skip_at_most": "training.max_bad_steps",
}

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}  # pydantic's names of bounds

Tracker = Literal["tensorboard", "wandb"]


class TrainingConfig(BaseModel, extra="forbid"):
    """The `training` section. A step is one optimizer step on `batch_size` images, on any number of processes."""

    steps: int = Field(800_000, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(128, ge=1, description="images per step, over all processes")
    optimizer: Literal["adam", "muon"] = Field(
        "adam",
        description="muon learns more per image: kernels and matrices inside the network by Muon, the rest by Adam",
    )
    learning_rate: float = Field(2e-4, gt=0, description="after the warm-up; muon takes 3e-3 where adam takes 1e-3")
    warmup: int = Field(5000, ge=0, description="steps over which the learning rate rises linearly from 0")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up: constant, or falling to 0 at the last step"
    )
    grad_clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null does not clip")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay per step of the averaged weights, which are saved")
    ema_warmup: bool = Field(True, description="average over fewer steps at the start; the paper does not")
    class_drop: float = Field(0.1, ge=0, lt=1, description="fraction of images trained without class, for guidance")
    seed: int = Field(0, ge=0, description="fixes initial weights, data order, noise and dropout")

    precision: Precision = Field(
        "auto", description="number format of the network; auto takes the fastest, which it measures on a CPU"
    )
    compile: Literal["auto"] | bool = Field("auto", description="torch.compile the network; auto: on a GPU")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="images in memory at once; gradients are accumulated to the batch"
    )

    checkpoint_every: int = Field(5000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="number of newest checkpoints to keep")
    log_every: int = Field(50, ge=1, description="steps per line of metrics.jsonl")
    preview_every: int = Field(5000, ge=0, description="steps between previews; 0: none")
    preview_images: int = Field(64, ge=1, description="images per preview")
    preview_steps: int = Field(20, ge=1, description="sampling steps of a preview")
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations, which choose the best model; 0: never")
    max_bad_steps: int = Field(
        5, ge=0, description="skipped steps in a row, with a gradient that is not finite, before the run stops"
    )
    loggers: list[Tracker] = Field(["tensorboard"], description="where to log besides metrics.jsonl")


class Config(BaseModel, extra="forbid"):
    """The configuration of a run, as its config.yaml holds it."""

    data: DataConfig
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)

    def to_yaml(self) -> str:
        """Return every field as YAML; `load_config` reads an equal configuration from it.

        The first line names a schema in the same folder, which may then move or go to another machine.
        """
        tree = self.model_dump(mode="json")
        return schema_comment(SCHEMA) + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_config(preset_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration.

    Args:
        preset_or_file: the name of a preset, a YAML file, or a run directory.
        overrides: values by dotted name, e.g. {"training.steps": 100}. A string is read as YAML, unless the field
            itself is text.

    Raises:
        UserError: a name or a value is wrong; the line names the nearest valid one.
    """
    return validate(overridden(read_yaml(find_file(preset_or_file)), preset_or_file, overrides or {}))


def overridden(tree: dict[str, Any], where: str | Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a configuration with `overrides` put in; see `load_config`."""
    for name, value in overrides.items():
        section, _, field = name.partition(".")
        check_section(section)
        if not field:
            raise UserError(f"--{name} names a section; give one of its fields, as in --training.steps 1000")
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise UserError(f"{where}: {section} must hold fields and their values")
        branch[field] = value if is_text(section, field) or not isinstance(value, str) else parse_value(name, value)
    return tree


def config_notes(config: Config) -> list[str]:
    """Return what the user probably did not mean, one line each, to print before a run starts."""
    notes = []
    training, diffusion = config.training, config.diffusion
    if training.warmup > training.steps:
        reached = training.learning_rate * training.steps / training.warmup
        notes.append(
            f"training.warmup ({training.warmup:,}) is longer than the run ({training.steps:,} steps): the learning "
            f"rate only reaches {reached:.2g} of {training.learning_rate:.2g}"
        )
    if left := visible_signal(float(diffusion.build_schedule().alphas_cumprod[-1])):
        notes.append(
            f"{left}, but sampling starts from pure noise: use more "
            "diffusion.timesteps, a larger diffusion.beta_end or diffusion.schedule cosine"
        )
    return notes


def visible_signal(alpha_bar: float) -> str | None:
    """Say how much x_T keeps of the image, by ᾱ_T, if one can see it: Var x_T = ᾱ_T Var x_0 + (1 - ᾱ_T), eq. 4."""
    return f"x_T keeps {alpha_bar:.0%} of the image's variance" if alpha_bar > VISIBLE_SIGNAL else None


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(entry.name.removesuffix(".yaml") for entry in presets_folder().iterdir() if is_yaml(entry.name))


def preset_about(name: str) -> str:
    """Return the first comment of a preset: what it trains and on what hardware."""
    return (presets_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def presets_folder() -> Traversable:
    return files("ddpm.presets")


def schema_comment(schema: str) -> str:
    """Return the first line of YAML that is written: editors complete and check the rest by this schema."""
    return f"# yaml-language-server: $schema={schema}\n"


def is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def find_file(preset_or_file: str | Path) -> Traversable:
    """Return the file of a preset, a YAML file, or the config.yaml of a run directory."""
    name = str(preset_or_file)
    if name in preset_names():
        return presets_folder() / f"{name}.yaml"
    path = user_path(name)
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(
            f"{name} is a folder, no preset; train on its images with ddpm train folder32 --data {quote(name)}"
        )
    if is_yaml(name) or len(path.parts) > 1:
        raise UserError(f"no configuration file {name}")
    raise UserError(f"no preset {name!r}; {nearest(name, preset_names(), NEAR)}")


def read_yaml(path: Traversable) -> dict[str, Any]:
    """Read a YAML file of nested mappings, in UTF-8 or the encoding of its byte-order mark."""
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than a configuration can be")
        encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "utf-8-sig")
        tree = parse_yaml(raw.decode(encoding))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a configuration is YAML") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold the sections {', '.join(Config.model_fields)}")
    return tree


def is_text(section: str, field: str) -> bool:
    """Whether a field takes any text. For data.source, a folder may be called 2024, on or `photos #1`."""
    info = field_info([section, field])
    return info is not None and info.annotation is str


def parse_value(name: str, text: str) -> Any:
    """Read the text of an override as YAML: 3 is a number, true a truth value, [1, 2] a list."""
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--{' '.join(name.split())} {text!r} is not valid YAML: {one_line(error)}") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML from an untrusted source.

    Refuses aliases and deep nesting, with which a small file can mean a huge one, and keys that appear twice.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise yaml.YAMLError("aliases (*name) and deep nesting are not allowed")
        check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (ValueError, TypeError, OverflowError) as error:  # e.g. the date 2020-99-99, or a list as a key
        raise yaml.YAMLError(str(error)) from None


def check_keys(node: yaml.Node | None) -> None:
    """Raise YAMLError if a mapping has a key twice; PyYAML would silently keep the last value."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            check_keys(item)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise yaml.YAMLError(f"{key.value} appears twice, in lines {lines[key.value]} and {line}")
                lines[key.value] = line
            check_keys(value)


def one_line(error: Exception) -> str:
    return " ".join(str(error).replace(' in "<unicode string>"', "").split())[:200] or type(error).__name__


def validate(tree: dict[str, Any], kind: type[AnyConfig] = Config) -> AnyConfig:  # type: ignore[assignment]
    """Return the configuration of nested mappings; UserError explains the first error in one line."""
    for section, branch in tree.items():
        if isinstance(branch, dict):
            tree[section] = {
                field: value if is_text(section, str(field)) else with_numbers(value) for field, value in branch.items()
            }
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def with_numbers(value: Any) -> Any:
    """Replace text such as 1e5 by the number, also inside lists: YAML 1.1 only knows 1.0e+5."""
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def explain(error: ValidationError) -> str:
    """Return the first error in one line with what would be right, and the number of further errors."""
    findings = error.errors(include_url=False)
    first = findings[0]
    path = [str(part) for part in first["loc"]]
    name, info, value = ".".join(path[:2]), field_info(path), first["input"]
    if first["type"] == "extra_forbidden":
        if new := RENAMED.get(".".join(path)):
            return f"{'.'.join(path)} is now called {new}"
        known = fields_at(path[:-1])
        line = f"{'.'.join(path[:-1]) or 'a configuration'} has no field {path[-1]!r}; {nearest(path[-1], known, NEAR)}"
    elif first["type"] == "missing":
        line = f"{name} is missing"
    elif first["type"] == "value_error":
        line = f"{name or 'the configuration'}: {first['msg'].removeprefix('Value error, ')}"
    elif info is None:
        line = f"{name or 'the configuration'} must hold fields and their values, not {shortened(value)}"
    elif (words := only_words(info.annotation)) and first["type"] == "list_type":
        line = f"{name} must be a list, such as [{value if value in words else words[0]}], not {shortened(value)}"
    elif words:
        line = f"{name} cannot be {shortened(value)}; {nearest(str(value), words, NEAR)}"
    else:
        kind = kind_of(info)
        article = "a " if kind.startswith(("whole number", "number", "list")) else ""
        line = f"{name} must be {article}{kind}, not {shortened(value)}"
        if str(value).lower() == "none" and " or null" in kind:
            line += f"; in YAML, {value} is null"
    more = len(findings) - 1
    return line + (f" (and {more} more)" if more and not same_field(findings) else "")


def same_field(findings: list) -> bool:
    """Whether all errors are of one field; a union reports one error per member."""
    return len({finding["loc"][:2] for finding in findings}) == 1


def fields_at(path: list[str]) -> list[str]:
    """Return the names of the fields of the section at a path."""
    model: Any = Config
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))


def field_info(path: list[str]) -> FieldInfo | None:
    """Return the field at ["section", "field", …]; None if there is no such field."""
    section = Config.model_fields.get(path[0]) if len(path) > 1 else None
    return getattr(section.annotation, "model_fields", {}).get(path[1]) if section else None


def only_words(annotation: Any) -> list[str]:
    """Return the choices of a field that takes fixed words or a list of them; empty for any other field."""
    if get_origin(annotation) is list:
        return only_words(get_args(annotation)[0])
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    return [word for word in words if isinstance(word, str)]


def kind_of(field: FieldInfo) -> str:
    """Return the type or the choices of a field in words, with its range: `whole number, ≥ 1`."""
    limits = _limits(field.metadata)
    return _kind(field.annotation) + (f", {limits}" if limits else "")


def _kind(annotation: Any, plural: str = "") -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = _limits(parts[1:])
        return _kind(parts[0], plural) + (f" {limits}" if limits else "")
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        members = [part for part in parts if part is not int or float not in parts]  # every whole number is a number
        return " or ".join("null" if part is types.NoneType else _kind(part, plural) for part in members)
    if origin is list:
        return f"list of {_kind(parts[0], 's')}"
    if origin is tuple:
        return f"list of {len(parts)} {_kind(parts[0], 's')}"
    return {int: "whole number" + plural, float: "number" + plural, bool: "true or false", str: "text"}[annotation]


def _limits(metadata: Iterable[Any]) -> str:
    """Return the range that pydantic's metadata sets."""
    limits: dict[str, Any] = {}
    for item in metadata:
        for part in getattr(item, "metadata", None) or [item]:
            limits |= {
                name: value for name in (*SIGNS, "min_length") if (value := getattr(part, name, None)) is not None
            }
    if {"ge", "le"} <= set(limits):
        return f"from {limits['ge']} to {limits['le']}"
    signs = [f"{sign} {limits[name]}" for name, sign in SIGNS.items() if name in limits]
    if "min_length" in limits:
        signs.append(f"at least {limits['min_length']} of them")
    return ", ".join(signs)


def check_section(name: str) -> None:
    """Raise UserError if a configuration has no section of this name."""
    if new := RENAMED.get(name):
        raise UserError(f"{name} is now called {new}")
    if name not in Config.model_fields:
        raise UserError(f"no section {name!r}; {nearest(name, Config.model_fields, NEAR)}")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
