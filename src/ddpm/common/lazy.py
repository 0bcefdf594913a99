"""Packages that import a module only when one of its names is used, so that help texts do not wait for PyTorch."""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import InspectLoader


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` (PEP 562) and `__all__` for a package.

    It exports the names that its source imports in the block `if TYPE_CHECKING:`, where type checkers and editors see
    them too.

    Args:
        package: its `__name__`.
    """
    loader = cast("InspectLoader", sys.modules[package].__loader__)  # it also knows the source within a zip file
    blocks = [node.body for node in ast.parse(loader.get_source(package) or "").body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    home = {alias.name: str(node.module) for node in imports for alias in node.names}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home[name] == package:
            value = importlib.import_module(f"{package}.{name}")
        else:
            value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(home)
    return __getattr__, lambda: names, names
