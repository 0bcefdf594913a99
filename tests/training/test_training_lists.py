"""Lists in a configuration: a word in place of one, and keys that appear twice in any of their items."""

import pytest

from ddpm.common.errors import UserError
from ddpm.training import load_config


@pytest.mark.parametrize(("given", "example"), [("wandb", "wandb"), ("tensorbord", "tensorboard")])
def test_a_word_in_place_of_a_list_of_words_is_told_as_that(given, example):
    with pytest.raises(UserError) as refused:
        load_config("digits", {"training.loggers": given})
    assert str(refused.value) == f"training.loggers must be a list, such as [{example}], not {given!r}"
    with pytest.raises(UserError, match=r"training\.loggers cannot be 'tensorbord'; did you mean tensorboard\?"):
        load_config("digits", {"training.loggers": ["tensorbord"]})
    assert load_config("digits", {"training.loggers": ["wandb"]}).training.loggers == ["wandb"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_key_that_appears_twice_in_any_item_of_a_list_is_refused(tmp_path, place):
    items = [f"{{number: {index}}}" for index in range(3)]
    items[place] = "{number: 1, number: 2}"
    (tmp_path / "c.yaml").write_text(f"diffusion:\n  betas: [{', '.join(items)}]\n")
    with pytest.raises(UserError, match="number appears twice, in lines 2 and 2"):
        load_config(tmp_path / "c.yaml")
