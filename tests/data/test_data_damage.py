"""Random damage: every reader opens a file or raises UserError in one line."""

import gzip
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_cases import opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm.common.errors import UserError
from ddpm.data.arrays import read_batch

fuzzed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """A few bytes changed, some cut out, some doubled."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(["change", "cut", "double", "end"])):
            case "change" if content:
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "double":
                content[place:place] = content[place : place + data.draw(st.integers(1, 40))]
            case "end":
                del content[place:]
    return bytes(content)


def opens_or_says_why(path: Path, **options) -> None:
    try:
        dataset = opened(path, **options)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert dataset.batch([0])[0].shape[0] == 1


@fuzzed
@given(st.data())
def test_damaged_archives_and_arrays_raise_only_user_errors(tmp_path, encode, pixels, write_tar, write_idx, data):
    kind = data.draw(st.sampled_from(["npz", "zip", "tar", "idx", "idx.gz"]))
    path = tmp_path / f"x.{kind}"
    images = np.stack([pixels(seed) for seed in range(3)])
    if kind == "npz":
        np.savez_compressed(path, images, np.arange(3))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for seed in range(3):
                archive.writestr(f"a/{seed}.png", encode(images[seed]))
    elif kind == "tar":
        write_tar(
            path,
            {
                f"{seed}.{end}": encode(images[seed]) if end == "png" else b"1"
                for seed in range(3)
                for end in ("png", "cls")
            },
        )
    else:
        write_idx(path, images[..., 0])
        if kind == "idx.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    path.write_bytes(damaged(data, path.read_bytes()))
    opens_or_says_why(path, labels=data.draw(st.booleans()))


@fuzzed
@given(st.data())
def test_damaged_pickles_raise_only_user_errors(data):
    batch = {"data": np.zeros((2, 12), np.uint8), "labels": [0, 1], "names": ["a", "b"]}
    content = damaged(data, pickle.dumps(batch, data.draw(st.sampled_from([2, 3, 4]))))
    try:
        found = read_batch(content, "batch")
    except UserError:
        return
    assert isinstance(found, dict)


@fuzzed
@given(st.text(max_size=60))
def test_any_text_as_a_source_raises_only_user_errors(tmp_path, text):
    source = str(tmp_path / "no") + "/" + text if "hf:" in text or text in (".", "..", "/") else text + "\u2603"
    with pytest.raises(UserError):
        opened(source)
