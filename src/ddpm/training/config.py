"""A run's configuration: data, process, network and training, read from a preset or a YAML file plus overrides."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddpm.common.errors import UserError, nearest
from ddpm.common.files import user_path
from ddpm.common.names import Precision
from ddpm.data.config import DataConfig
from ddpm.diffusion.config import DiffusionConfig
from ddpm.networks.config import NetworkConfig

MAX_FILE_BYTES = 1 << 20  # a configuration is a page of text; anything larger is another kind of file
NEAR = 0.5  # likeness from which a name is suggested; fields are long words, so less than difflib's own 0.6
DEEPEST = 20

RENAMED = {  # names of configurations written before version 0.2
    "process": "diffusion",
    "diffusion.timestep_draw": "diffusion.timestep_sampler",
    "training.decay": "training.lr_schedule",
    "training.clip": "training.grad_clip",
    "training.ema": "training.ema_decay",
    "training.keep": "training.keep_checkpoints",
    "training.track": "training.loggers",
    "training.skip_at_most": "training.max_bad_steps",
}

Tracker = Literal["tensorboard", "wandb"]


class TrainingConfig(BaseModel):
    """The `training` section. A step is one optimizer step on `batch_size` images, on any number of processes."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(800_000, ge=1, description="optimizer steps of the whole run")
    batch_size: int = Field(128, ge=1, description="images per step, over all processes")
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, after the warm-up")
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
        "auto", description="number format of the network; auto takes bf16 if the hardware has it"
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


class Config(BaseModel):
    """The configuration of a run, as its config.yaml holds it."""

    model_config = ConfigDict(extra="forbid")

    data: DataConfig
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)

    def to_yaml(self) -> str:
        """The resolved configuration; `load_config` reads it back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def load_config(preset_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset's name or a YAML file.

    `overrides` maps dotted names to values, e.g. {"training.steps": 100}; values that are text are read as YAML, but
    for a field that is text itself.
    A name or a value that is wrong is a UserError of one line that names the nearest valid one.
    """
    tree = read_yaml(find_file(preset_or_file))
    for name, value in (overrides or {}).items():
        section, _, field = name.partition(".")
        check_name(section, Config.model_fields, "section")
        if not field:
            raise UserError(f"--{name} names a section; give one of its fields, as in --training.steps 1000")
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise UserError(f"{preset_or_file}: {section} must hold fields and their values")
        branch[field] = value if is_text(section, field) or not isinstance(value, str) else parse_value(name, value)
    return validate(tree)


def preset_names() -> list[str]:
    """The names that `load_config` knows."""
    return sorted(entry.name.removesuffix(".yaml") for entry in presets_folder().iterdir() if is_yaml(entry.name))


def preset_about(name: str) -> str:
    """A preset's first comment: what it is, in a line."""
    return (presets_folder() / f"{name}.yaml").read_text().partition("\n")[0].lstrip("# ")


def presets_folder():
    return files("ddpm.presets")


def is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def find_file(preset_or_file: str | Path):
    """The file of a preset's name, or the file itself."""
    name = str(preset_or_file)
    if name in preset_names():
        return presets_folder() / f"{name}.yaml"
    path = user_path(name)
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.is_file():
        return path
    if is_yaml(name) or len(path.parts) > 1:
        raise UserError(f"no configuration file {name}")
    raise UserError(f"no preset {name!r}; {nearest(name, preset_names(), NEAR)}")


def read_yaml(path) -> dict[str, Any]:
    """A YAML file of nested mappings, as plain dictionaries."""
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than a configuration can be")
        tree = parse_yaml(raw.decode())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a configuration is YAML") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold the sections {', '.join(Config.model_fields)}")
    return tree


def is_text(section: str, field: str) -> bool:
    """Whether a field takes any text, e.g. data.source: a folder may be called 2024, on or `photos #1`."""
    fields = getattr(Config.model_fields[section].annotation, "model_fields", {})
    return field in fields and fields[field].annotation is str


def parse_value(name: str, text: str) -> Any:
    """An override's text read as YAML: 3 is a number, true a truth value, [1, 2] a list."""
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--{' '.join(name.split())} {text!r} is not valid YAML: {one_line(error)}") from None


def parse_yaml(text: str) -> Any:
    """safe_load of what cannot unfold: no aliases, with which a small file may mean a huge one, and no deep nesting."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
                raise yaml.YAMLError("aliases (*name) and deep nesting are not taken")
        return yaml.safe_load(text)
    except (ValueError, TypeError, OverflowError) as error:  # e.g. the date 2020-99-99, or a list as a key
        raise yaml.YAMLError(str(error)) from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def validate(tree: dict[str, Any]) -> Config:
    """A Config from nested mappings; pydantic's findings become one line."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first finding in one line with what would be right, and how many more there are."""
    findings = error.errors(include_url=False)
    first = findings[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        if new := RENAMED.get(".".join(path)):
            return f"{'.'.join(path)} is now called {new}"
        known = fields_at(path[:-1])
        line = f"{'.'.join(path[:-1]) or 'a configuration'} has no field {path[-1]!r}; {nearest(path[-1], known, NEAR)}"
    elif first["type"] == "literal_error":
        allowed = choices_at(path)
        near = f"; {nearest(str(first['input']), allowed, NEAR)}" if allowed else f": {first['msg']}"
        line = f"{'.'.join(path)} cannot be {shortened(first['input'])}{near}"
    else:
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f", not {shortened(first['input'])}"
        line = f"{'.'.join(path) or 'the configuration'}: {message}{given}"
    more = len(findings) - 1
    return line + (f" (and {more} more)" if more and not same_field(findings) else "")


def same_field(findings: list) -> bool:
    """Whether all findings are of one field (a union reports one a member)."""
    return len({finding["loc"][:2] for finding in findings}) == 1


def fields_at(path: list[str]) -> list[str]:
    """The fields of the section at a path."""
    model: Any = Config
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))


def choices_at(path: list[str]) -> list[str]:
    """The words that a field of fixed choices takes; empty for any other field."""
    if len(path) < 2 or path[0] not in Config.model_fields:
        return []
    section: Any = Config.model_fields[path[0]].annotation
    field = section.model_fields.get(path[1])
    return [word for word in literals(field.annotation) if isinstance(word, str)] if field else []


def literals(annotation: Any) -> list[Any]:
    """All values of the Literals inside an annotation."""
    if getattr(annotation, "__origin__", None) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in literals(part)]


def check_name(name: str, known, kind: str) -> None:
    if new := RENAMED.get(name):
        raise UserError(f"{name} is now called {new}")
    if name not in known:
        raise UserError(f"no {kind} {name!r}; {nearest(name, known, NEAR)}")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
