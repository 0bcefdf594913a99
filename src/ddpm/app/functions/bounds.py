"""What the page allows: everything that is asked for is checked again behind it, whoever sent it."""

from ddpm.errors import UserError

MOST_SEED = 2**53 - 1  # what JavaScript counts exactly


def bounded(name: str, value: float | None, low: int, high: int) -> int:
    """A whole number within its bounds; UserError otherwise."""
    if value is None or value != value or value != int(value) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {value}")
    return int(value)
