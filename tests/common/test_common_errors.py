"""Hints, first lines and the command that installs what is missing."""

import pytest

from ddpm.common.errors import UserError, first_line, nearest, require


def test_the_nearest_name_is_meant_if_it_is_near_enough():
    names = ["steps", "batch_size", "learning_rate"]
    assert nearest("step", names) == "did you mean steps?"
    assert nearest("abxy", ["abcd", "efgh"]) == "there are abcd, efgh"  # half of the letters agree
    assert nearest("abxy", ["abcd", "efgh"], 0.5) == "did you mean abcd?"
    assert nearest("x", iter(names)) == "there are steps, batch_size, learning_rate"


def test_an_error_is_told_by_its_first_line_or_its_kind():
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    assert require("json", "eval").dumps([]) == "[]"
    with pytest.raises(UserError, match=r"^this needs nothing_like_it: run pip install 'ddpm-kit\[eval\]'$"):
        require("nothing_like_it.part", "eval")
