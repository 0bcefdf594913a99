"""What several verbs read from their flags in the same way."""

from ddpm.errors import UserError
from ddpm.samplers.denoiser import Clip


def parse_labels(text: str | None) -> list[int | str] | str | None:
    """`3`, `0,1,2`, `cat,dog` or `all`, as `Model.sample` takes them."""
    if text is None or text == "all":
        return text
    words = [word.strip() for word in text.split(",")]
    return [int(word) if word.lstrip("-").isdigit() else word for word in words if word]


def parse_clip(text: str) -> Clip:
    """`static`, `dynamic` or `none`."""
    match text:
        case "static" | "dynamic":
            return text
        case "none":
            return None
    raise UserError(f"--clip takes static, dynamic or none, not {text!r}")
