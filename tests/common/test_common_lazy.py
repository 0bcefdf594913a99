"""A package whose modules are imported when one of their names is used."""

import importlib
import sys

import pytest

PACKAGE = """
from typing import TYPE_CHECKING
from ddpm.common.lazy import lazy_exports
if TYPE_CHECKING:
    import os
    from idle_package.second import late as late
    from idle_package.first import early as early
    from idle_package import second as second
__getattr__, __dir__, __all__ = lazy_exports(__name__)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "idle_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "first.py").write_text("early = 1")
    (folder / "second.py").write_text("late = [2]")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("idle_package")
    for name in [name for name in sys.modules if name.startswith("idle_package")]:
        del sys.modules[name]


def test_a_module_is_imported_with_the_first_of_its_names(package):
    assert "idle_package.first" not in sys.modules
    assert package.early == 1
    assert "idle_package.second" not in sys.modules
    assert package.late is package.second.late
    assert "late" in vars(package)  # so that the next use is as quick as any


def test_all_names_are_listed_in_order_and_no_others(package):
    assert package.__all__ == dir(package) == ["early", "late", "second"]
    names = {}
    exec("from idle_package import *", names)
    assert (names["early"], names["late"]) == (1, [2])
    assert "lazy_exports" not in names
    with pytest.raises(AttributeError, match="module 'idle_package' has no attribute 'os'"):
        getattr(package, "os")  # noqa: B009
