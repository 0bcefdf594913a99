"""`ddpm plot`: which models are meant, what they are called, and what it takes."""

import sys

import pytest

from ddpm.cli import run
from ddpm.cli.plot import _titled
from ddpm.common.errors import UserError


def test_plot_titles_leave_an_equals_sign_in_a_path(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("runs/lr=0.1")
    model.save("plain")
    assert list(_titled(["runs/lr=0.1", "slow=runs/lr=0.1", "plain", "other=plain"])) == [
        *("lr=0.1", "slow", "plain", "other"),
    ]
    with pytest.raises(UserError, match="two models have the title 'plain'"):
        _titled(["plain", "plain=runs/lr=0.1"])


def test_plot_without_matplotlib_names_the_extra(tmp_path, monkeypatch, capsys):
    """The name on PyPI belongs to another project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["plot", "schedule"]) == 2
    said = "this needs matplotlib: run pip install 'ddpm-kit[eval]'"
    assert capsys.readouterr().err == f"ddpm: error: {said}\n"
