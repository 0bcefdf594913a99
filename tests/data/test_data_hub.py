"""Sets that are read through the datasets library: columns, filters, classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_cases import as_array, opened
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data.hub_datasets import HubShards

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


def test_hub_set_is_read_with_its_classes(tmp_path, pixels):
    folder = hub_set(tmp_path / "hub", pixels)
    dataset = opened(f"hf:{folder}", labels=True)
    assert dataset.class_names == ["cat", "dog", "eel"]
    assert (as_array(dataset) == np.stack([pixels(seed) for seed in range(12)])).all()
    assert dataset.labels.tolist() == [seed % 3 for seed in range(12)]
    assert opened(folder, labels=True).fingerprint == dataset.fingerprint  # the same parquet files, as a path


@pytest.mark.parametrize("name", ["flowers [2024]", "a*b", "what?"])
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_file_may_have_a_name_like_a_pattern(tmp_path, pixels, name, streaming):
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
def test_row_filter_selects_rows_and_classes(tmp_path, pixels, query, rows, class_names, streaming):
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
        ("labl=dog", "no column 'labl'; did you mean label"),
        ("label=dgo", "label is never 'dgo'; did you mean dog"),
        ("coarse=c7", "no row has coarse c7"),
        ("label", "a row filter reads"),
        ("label=", "a row filter reads"),
    ],
)
def test_row_filter_that_is_wrong_is_refused(tmp_path, pixels, query, message):
    with pytest.raises(UserError, match=message):
        opened(f"hf:{hub_set(tmp_path / 'hub', pixels)}?{query}")


@pytest.mark.parametrize(
    ("query", "class_names"), [("style=cubist,pointillist", ["cubist", "pointillist"]), ("", ["a"])]
)
def test_row_filter_chooses_the_label_column(tmp_path, pixels, query, class_names):
    features = {"image": datasets.Image(), "artist": datasets.ClassLabel(names=["a"])}
    features["style"] = datasets.ClassLabel(names=["cubist", "fauvist", "pointillist"])
    images = [Image.fromarray(pixels(seed)) for seed in range(3)]
    rows = {"image": images, "artist": [0, 0, 0], "style": [0, 1, 2]}
    (tmp_path / "hub").mkdir()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(tmp_path / "hub" / "train-0.parquet")
    dataset = opened(f"hf:{tmp_path / 'hub'}" + f"?{query}" * bool(query), labels=True)
    assert dataset.class_names == class_names


def saved_table(pixels, count=6):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.fromarray(pixels(seed)) for seed in range(count)], "label": [n % 2 for n in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_saved_dataset_is_opened(tmp_path, pixels, prefix):
    saved_table(pixels).save_to_disk(tmp_path / "saved")
    dataset = opened(f"{prefix}{tmp_path / 'saved'}", labels=True)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.tolist() == [0, 1] * 3
    assert (as_array(dataset) == np.stack([pixels(seed) for seed in range(6)])).all()
    with pytest.raises(UserError, match="has no splits: leave out :test"):
        opened(f"{prefix}{tmp_path / 'saved'}:test")


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_saved_dataset_dict_gives_the_split(tmp_path, pixels, prefix):
    splits = {"train": saved_table(pixels), "test": saved_table(pixels, 4)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert len(opened(f"{prefix}{tmp_path / 'saved'}")) == 6
    assert len(opened(f"{prefix}{tmp_path / 'saved'}:test")) == 4
    with pytest.raises(UserError, match="has no split 'dev': use :train or :test"):
        opened(f"{prefix}{tmp_path / 'saved'}:dev")


def test_saved_dataset_takes_row_filters(tmp_path, pixels):
    saved_table(pixels).save_to_disk(tmp_path / "saved")
    assert len(opened(f"hf:{tmp_path / 'saved'}?label=dog")) == 3


def test_saved_dataset_does_not_follow_paths_in_its_rows(tmp_path, image_folder):
    """Neither if its description claims that the library found the paths."""
    folder = image_folder(["cat/1.png"])
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows = {"image": [{"bytes": None, "path": str(folder / "cat" / "1.png")}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    info = json.loads((tmp_path / "saved" / "dataset_info.json").read_text())
    (tmp_path / "saved" / "dataset_info.json").write_text(json.dumps({**info, "builder_name": "imagefolder"}))
    with pytest.raises(UserError, match="the row holds no image"):
        opened(tmp_path / "saved")


def test_damaged_saved_dataset_is_one_line(tmp_path, pixels):
    saved_table(pixels).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be opened through the datasets library") as error:
        opened(tmp_path / "saved")
    assert "\n" not in str(error.value)


def test_hub_set_of_loose_files_is_read(image_folder):
    folder = image_folder([f"{kind}/{n}.png" for kind in ("ape", "bee") for n in range(3)])
    for streaming in (False, True):
        dataset = opened(f"hf:{folder}", labels=True, streaming=streaming)
        assert dataset.class_names == ["ape", "bee"]
        _, labels = dataset.draw(0, range(6))
        assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_hub_set_that_is_missing_is_one_line(tmp_path):
    for source in (f"hf:{tmp_path / 'nothing-here'}", "hf:", "hf:?a=b"):
        with pytest.raises(UserError, match="names no data set"):
            opened(source)
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column of images; it has a"):
        opened(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be opened through the datasets library"):
        opened(tmp_path / "x.parquet")


def test_streamed_hub_set_knows_its_length_where_the_set_says_it(tmp_path, pixels):
    """A row filter leaves an unknown number of them."""
    import datasets

    table = datasets.load_dataset("parquet", data_dir=str(hub_set(tmp_path / "hub", pixels)), split="train")
    streamed = table.to_iterable_dataset()
    streamed.info.splits = datasets.SplitDict(train=datasets.SplitInfo("train", num_examples=12))
    streamed._split = datasets.Split.TRAIN
    assert HubShards("hub", "hub", streamed, {}).count == 12
    assert HubShards("hub", "hub", streamed, {"label": ["dog"]}).count is None
