"""Sets that are read through the datasets library: columns, filters, classes."""

from pathlib import Path

import numpy as np
import pytest
from data_cases import as_array, opened
from PIL import Image

from ddpm.common.errors import UserError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("private_cache")


def hub_set(folder: Path, pixels, count: int = 12) -> Path:
    rows = {
        "img": [Image.fromarray(pixels(seed)) for seed in range(count)],
        "coarse": [f"c{seed % 2}" for seed in range(count)],
        "label": [seed % 3 for seed in range(count)],
    }
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "coarse": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog", "eel"]),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=features)
    half = count // 2
    table.select(range(half)).to_parquet(folder / "train-0.parquet")
    table.select(range(half, count)).to_parquet(folder / "train-1.parquet")
    return folder


def test_hub_set(tmp_path, pixels):
    folder = hub_set(tmp_path / "hub", pixels)
    dataset = opened(f"hf:{folder}", labels=True)
    assert dataset.class_names == ["cat", "dog", "eel"]
    assert (as_array(dataset) == np.stack([pixels(seed) for seed in range(12)])).all()
    assert dataset.labels.tolist() == [seed % 3 for seed in range(12)]
    assert opened(folder, labels=True).fingerprint == dataset.fingerprint  # the same parquet files, as a path


@pytest.mark.parametrize("name", ["flowers [2024]", "a*b", "what?"])
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_by_names_that_look_like_patterns(tmp_path, pixels, name, streaming):
    folder = hub_set(tmp_path / name, pixels)
    (folder / "train-1.parquet").rename(folder / f"{name}.parquet")
    dataset = opened(folder / f"{name}.parquet", labels=True, streaming=streaming)
    assert dataset.draw(0, range(6))[1].bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("query", "rows", "class_names"),
    [
        ("label=dog", lambda n: n % 3 == 1, ["dog"]),
        ("label=eel,cat", lambda n: n % 3 != 1, ["cat", "eel"]),
        ("label=2,0", lambda n: n % 3 != 1, ["cat", "eel"]),
        ("coarse=c1", lambda n: n % 2 == 1, ["cat", "dog", "eel"]),
        ("coarse=c1&label=dog,eel", lambda n: n % 2 == 1 and n % 3 != 0, ["dog", "eel"]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_row_filter(tmp_path, pixels, query, rows, class_names, streaming):
    source = f"hf:{hub_set(tmp_path / 'hub', pixels)}?{query}"
    dataset = opened(source, labels=True, streaming=streaming)
    wanted = [number for number in range(12) if rows(number)]
    if streaming:
        images, labels = dataset.draw(0, range(len(wanted)))
    else:
        images, labels = dataset.batch(range(len(dataset)))
    expected = {pixels(n).tobytes(): ["cat", "dog", "eel"][n % 3] for n in wanted}
    found = {
        image.permute(1, 2, 0).numpy().tobytes(): dataset.class_names[label]
        for image, label in zip(images, labels, strict=True)
    }
    assert dataset.class_names == class_names
    assert found == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("labl=dog", "no column 'labl'; it has label"),
        ("label=dgo", "label is never 'dgo'; it can be dog"),
        ("coarse=c7", "no row has coarse c7"),
        ("label", "a row filter reads"),
        ("label=", "a row filter reads"),
    ],
)
def test_row_filters_that_make_no_sense(tmp_path, pixels, query, message):
    with pytest.raises(UserError, match=message):
        opened(f"hf:{hub_set(tmp_path / 'hub', pixels)}?{query}")


@pytest.mark.parametrize(
    ("query", "class_names"), [("style=cubist,pointillist", ["cubist", "pointillist"]), ("", ["a"])]
)
def test_the_column_whose_classes_are_chosen_is_the_one_of_the_classes(tmp_path, pixels, query, class_names):
    features = {"image": datasets.Image(), "artist": datasets.ClassLabel(names=["a"])}
    features["style"] = datasets.ClassLabel(names=["cubist", "fauvist", "pointillist"])
    images = [Image.fromarray(pixels(seed)) for seed in range(3)]
    rows = {"image": images, "artist": [0, 0, 0], "style": [0, 1, 2]}
    (tmp_path / "hub").mkdir()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(tmp_path / "hub" / "train-0.parquet")
    dataset = opened(f"hf:{tmp_path / 'hub'}" + f"?{query}" * bool(query), labels=True)
    assert dataset.class_names == class_names


def test_hub_set_of_loose_files(image_folder):
    folder = image_folder([f"{kind}/{n}.png" for kind in ("ape", "bee") for n in range(3)])
    for streaming in (False, True):
        dataset = opened(f"hf:{folder}", labels=True, streaming=streaming)
        assert dataset.class_names == ["ape", "bee"]
        _, labels = dataset.draw(0, range(6))
        assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_a_missing_hub_set_is_one_line(tmp_path):
    for source in (f"hf:{tmp_path / 'nothing-here'}", "hf:", "hf:?a=b"):
        with pytest.raises(UserError, match="names no data set"):
            opened(source)
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column of images; it has a"):
        opened(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be opened through the datasets library"):
        opened(tmp_path / "x.parquet")
