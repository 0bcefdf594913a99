"""The class that an upload is restored or edited as: one of the model's, or none."""

from ddpm.model import Model

NO_CLASS = "no class"


def classes(model: Model) -> list[str]:
    """What may be asked for; empty where the model knows no classes."""
    return [NO_CLASS, *(model.class_names or [])] if model.null_label is not None else list(model.class_names or [])


def as_labels(label: str) -> str | None:
    """As `restore` and `Editor` take it."""
    return None if label == NO_CLASS else label
