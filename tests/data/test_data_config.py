"""The `data` section: its bounds, its defaults, and what a model's folder says about its pictures."""

import pytest

from ddpm.common.errors import UserError
from ddpm.data.config import DataConfig, Preprocessing, checked_config, data_section, preprocessing_of


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("image_size", [8, 4096, (8, 4096)], [7, 4097, (7, 8), (8, 4097)]),
        ("channels", [1, 4], [0, 5]),
        ("background", [0, 255, (0, 255, 0)], [-1, 256, (0, 256, 0), (0, 0, -1), (0, 0)]),
        ("shuffle_buffer", [1, 10**6], [0]),
        ("source", ["digits"], ["", " "]),
    ],
)
def test_data_config_takes_what_is_inside_its_bounds_alone(field, inside, outside):
    for value in inside:
        assert getattr(DataConfig(**{field: value}), field) == value
    for value in outside:
        with pytest.raises(UserError, match=rf"^{field}.*: \S"):
            checked_config(**{"source": "digits", field: value})


def test_what_is_left_out_of_the_section_is_as_documented():
    assert DataConfig().model_dump() == {
        "source": "digits",
        "image_size": 28,
        "channels": 3,
        "random_flip": False,
        "labels": False,
        "fit": "crop",
        "background": 255,
        "streaming": False,
        "shuffle_buffer": 4096,
    }
    assert Preprocessing() == ("crop", 255)  # a plain picture is cropped, on white
    assert DataConfig(image_size=(8, 16), channels=1).image_shape == (1, 8, 16)


def test_preprocessing_is_read_from_what_a_models_folder_says():
    section = {"source": "gone", "fit": "pad", "background": [1, 2, 3], "of_a_later_version": 5}
    assert data_section({"config": {"data": section}}) == section
    assert preprocessing_of(section) == Preprocessing(fit="pad", background=(1, 2, 3))
    assert preprocessing_of({"background": 0}) == Preprocessing(fit="crop", background=0)
    for provenance in ({}, {"config": None}, {"config": {"data": "mine"}}, {"config": {"data": None}}):
        assert data_section(provenance) == {}
    assert preprocessing_of({}) == ("crop", 255)
