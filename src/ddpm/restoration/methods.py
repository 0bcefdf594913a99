"""The methods by name, and which degradations each can undo."""

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddpm.errors import UserError
from ddpm.restoration.ddnm import ddnm
from ddpm.restoration.ddrm import ddrm
from ddpm.restoration.dps import dps
from ddpm.restoration.operator import LinearOperator, SpectralOperator
from ddpm.restoration.operators import Inpainting
from ddpm.restoration.repaint import repaint


@dataclass(frozen=True)
class Method:
    """A restoration method, the steps it takes unless told, and the operator it needs.

    noisy, noiseless: the class of operator, with noise (None: never) and without; object is any function.
    """

    name: str
    run: Callable[..., Tensor]
    steps: int
    noisy: type | None
    noiseless: type

    @property
    def options(self) -> dict[str, float]:
        """What the method may be told besides, with the values it takes otherwise."""
        parameters = inspect.signature(self.run).parameters
        return {name: p.default for name, p in parameters.items() if isinstance(p.default, int | float)}

    def check(self, operator: Callable[[Tensor], Tensor], sigma_y: float) -> None:
        """Refuse what the method cannot do, naming what can."""
        check_sigma(sigma_y)
        needed = self.noisy if sigma_y > 0 else self.noiseless
        if needed is None:
            raise UserError(f"{self.name} takes the known pixels as exact; for noisy ones use ddrm or ddnm")
        if isinstance(operator, needed):
            return
        if needed is Inpainting:
            raise UserError(f"{self.name} only inpaints; for this task use ddrm, ddnm or dps")
        if needed is SpectralOperator:
            others = "dps" if sigma_y > 0 else "ddnm or dps"
            raise UserError(f"{self.name} needs an operator with a known singular value decomposition; use {others}")
        raise UserError(f"{self.name} needs a linear operator; for any other forward function use dps")


METHODS = {
    "ddrm": Method("ddrm", ddrm, 20, SpectralOperator, SpectralOperator),
    "ddnm": Method("ddnm", ddnm, 100, SpectralOperator, LinearOperator),
    "repaint": Method("repaint", repaint, 250, None, Inpainting),
    "dps": Method("dps", dps, 1000, object, object),
}


def find_method(name: str) -> Method:
    """The method called `name`; an error names the nearest one."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(METHODS)}"
    raise UserError(f"no restoration method named {name!r}{hint}")


def check_sigma(sigma: float) -> None:
    """Refuse a noise level that is no noise level."""
    if not math.isfinite(sigma) or sigma < 0:
        raise UserError(f"the noise must be a number of at least 0 (in units of the [0, 1] image), not {sigma}")
