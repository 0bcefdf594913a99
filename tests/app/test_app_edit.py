"""What is behind the Edit tab."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.app import edit
from ddpm.app.uploads import read_fitted, read_upload
from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.editing import Editor, fidelity_curve, translate
from ddpm.samplers.algorithms import Step


def last(iterator):
    *_, answer = iterator
    return answer


def test_strength_0_keeps_the_upload_and_1_does_not(served_model, picture):
    kept = last(edit.edit_upload(served_model, picture, 0.0, edit.Settings()))
    assert torch.equal(kept, picture)
    assert "PSNR inf" in edit.report_edit(kept, picture, "kept")
    *steps, changed = edit.edit_upload(served_model, picture, 1.0, edit.Settings("class 0", steps=4))
    assert all(isinstance(step, Step) for step in steps)
    assert not torch.equal(changed, picture)


def test_guidance_changes_an_edit_and_needs_a_class(served_model, picture):
    edited = [
        last(edit.edit_upload(served_model, picture, 1.0, edit.Settings(label, guidance, steps=4)))
        for label, guidance in (("class 0", 1.0), ("class 0", 4.0), ("no class", 1.0), ("no class", 4.0))
    ]
    assert not torch.equal(edited[0], edited[1])
    assert torch.equal(edited[2], edited[3])


def test_every_strength_gives_what_the_editor_gives(served_model, picture):
    *steps, points = edit.try_strengths(served_model, picture, edit.Settings("class 1", 2.0, 4, 3))
    assert all(isinstance(step, Step) for step in steps)
    editor = Editor(served_model, sampler="ancestral", steps=4, seed=3, labels="class 1", guidance=2.0, batch_size=1)
    expected = fidelity_curve(editor, picture[None])
    assert [point.denoising_loss for point in points] == [point.denoising_loss for point in expected]
    assert all(torch.equal(a.images, b.images) for a, b in zip(points, expected, strict=True))
    assert edit.curve_html(points).count("strength_") == 11
    assert edit.curve_html(points).count("<polyline") == 2


def test_a_translation_shows_its_steps(served_model, picture):
    *steps, image = edit.edit_upload(served_model, picture, 0, edit.Settings("class 0", steps=8), "class 1")
    assert steps
    assert all(0 <= step.index < step.steps == 16 for step in steps)
    assert torch.equal(
        image, translate(Editor(served_model, batch_size=1), picture[None], "class 0", "class 1", evaluations=8)[0]
    )


def test_translating_needs_a_class(served_model, picture):
    assert last(edit.edit_upload(served_model, picture, 0, edit.Settings("class 0", steps=4), "class 1")).shape == (
        1,
        16,
        16,
    )
    with pytest.raises(UserError, match="no class is chosen"):
        last(edit.edit_upload(served_model, picture, 0, edit.Settings(), "no class"))


def test_the_uploads_stand_at_the_ends_of_the_way_between_them(served_model, uploads, picture):
    sources = [str(uploads / "good.png"), (uploads / "mask.png").read_bytes()]
    row = last(edit.between(served_model, sources, 0.2, 3, edit.Settings(steps=5)))
    assert row.shape == (5, 1, 16, 16)
    assert torch.equal(row[0], picture)
    expected = read_upload(str(uploads / "good.png"), 1).resize((16, 16), Image.Resampling.BICUBIC, box=(0, 5, 30, 35))
    assert np.array_equal(to_uint8(row[0])[0], expected)
    assert torch.equal(row[-1], read_fitted(sources[1], (1, 16, 16)))


def test_a_missing_second_upload_is_named(served_model, uploads):
    with pytest.raises(UserError, match="the second upload is missing"):
        edit.between(served_model, [str(uploads / "good.png"), None], 0.5, 3, edit.Settings())
