"""What is behind the Compare tab."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.app import compare
from ddpm.cli import run as command_line
from ddpm.common.errors import UserError
from ddpm.common.pixels import make_grid, to_pillow


def last(iterator):
    *_, answer = iterator
    return answer


def test_every_cell_is_what_the_model_samples(served_model):
    grid = compare.Grid(["ddim", "heun"], compare.STEPS, [2, 3], 1.5, "class 1", 2, 7)
    cells = {place: event for place, event in compare.compare(served_model, grid) if isinstance(event, torch.Tensor)}
    assert list(cells) == [0, 1, 2, 3]
    expected = served_model.sample(2, sampler="heun", steps=3, labels=1, guidance=1.5, seed=7, batch_size=2)
    assert torch.equal(cells[3], expected)
    by_guidance = compare.Grid(["ddim"], compare.GUIDANCE, [0, 4], 3, number=2)
    assert torch.equal(
        last(compare.compare(served_model, by_guidance))[1],
        served_model.sample(2, sampler="ddim", steps=3, guidance=4.0, batch_size=2),
    )
    first = compare.finished(served_model, "a model", grid, 0, cells[0])
    assert np.array_equal(first.picture, make_grid(cells[0]))
    assert compare.table(served_model, grid, [first]).count("<img") == 1
    assert compare.table(served_model, grid, []).count("<td>") == 5


@pytest.mark.parametrize("axis", [compare.STEPS, compare.GUIDANCE])
def test_the_commands_and_the_program_draw_the_cells(served_model, tmp_path, monkeypatch, axis):
    served_model.save(tmp_path / "a model")
    monkeypatch.chdir(tmp_path)
    grid = compare.Grid(["ddim", "heun"], axis, [2, 3], 2, "class 1", 2, 7)
    cells = [event for _, event in compare.compare(served_model, grid) if isinstance(event, torch.Tensor)]
    names = ["ddim-2.png", "ddim-3.png", "heun-2.png", "heun-3.png"]

    def written():
        found = [np.asarray(Image.open(name)) for name in names]
        for name in names:
            Path(name).unlink()
        return found

    for command in compare.as_command(served_model, "a model", grid).replace("\\\n", "").splitlines():
        assert command_line(shlex.split(command)[1:]) == 0
    first = written()
    exec(compare.as_python(served_model, "a model", grid), {})
    assert all(
        np.array_equal(one, other) and np.array_equal(one, to_pillow(make_grid(cell)))
        for one, other, cell in zip(first, written(), cells, strict=True)
    )


@pytest.mark.parametrize("text", ["", "many", "1,2,3,4,5,6,7,8,9"])
def test_columns_that_cannot_be_are_refused(text):
    with pytest.raises(UserError, match="columns"):
        compare.read_values(text)


@pytest.mark.parametrize(
    "changes", [{"samplers": []}, {"values": [0]}, {"values": [2.5]}, {"fixed": 9}, {"number": 0}, {"label": "class 9"}]
)
def test_a_comparison_that_cannot_be_is_refused(served_model, changes):
    grid = replace(compare.Grid(["ddim"], compare.STEPS, [2], 1.0, number=1), **changes)
    with pytest.raises(UserError):
        list(compare.compare(served_model, grid))
