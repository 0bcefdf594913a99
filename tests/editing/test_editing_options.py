"""An edit hands its sampler every option that was given, also one whose value looks like none."""

import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.editing import Editor, sdedit

IMAGES = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_option_that_the_sampler_lacks_is_refused_whatever_its_value(model, eta):
    with pytest.raises(UserError, match="ancestral takes no option 'eta'"):
        sdedit(Editor(model, eta=eta), IMAGES, 0.5)


def test_eta_of_an_edit_adds_the_noise_that_it_asks_for(model):
    fixed = {"sampler": "ddim", "steps": 4, "precision": "fp32"}
    found = {eta: sdedit(Editor(model, eta=eta, **fixed), IMAGES, 0.9) for eta in (None, 0.0, 0.5, 1.0)}
    assert torch.equal(found[None], found[0.0])  # DDIM's default is no noise
    different = [found[0.0], found[0.5], found[1.0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
