"""A stream that goes on after any row reads each later row exactly once, filters and broken rows included."""

import io
import json

import pytest
import torch
from PIL import Image

from ddpm.data import DataConfig, StreamDataset
from ddpm.data.hub_datasets import stream_hub, stream_parquet
from ddpm.data.stream import Encoded, TarShards

CLASSES = ["cat", "dog", "emu"]
BROKEN = {5, 6, 13, 29}  # rows without an image, two of them neighbours, and the last
SIZES = (11, 1, 18)  # rows per shard: 0…10, 11, 12…29


def png_of(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 3 * number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path, private_cache):
    """Three files of so many rows, in groups of four; row n shows 3n and is of class n % 3."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    first, paths = 0, []
    for shard, size in enumerate(SIZES):
        numbers = range(first, first + size)
        images = [None if n in BROKEN else {"bytes": png_of(n), "path": None} for n in numbers]
        rows = datasets.Dataset.from_dict({"image": images, "label": [n % 3 for n in numbers]}, features=features)
        paths.append(tmp_path / "set" / f"{shard}.parquet")
        paths[-1].parent.mkdir(exist_ok=True)
        rows.to_parquet(paths[-1], batch_size=4)
        first += size
    return paths


@pytest.fixture
def tar(tmp_path, write_tar):
    """Three tar files of the same images; the broken ones hold no picture."""
    first, paths = 0, []
    for shard, size in enumerate(SIZES):
        members = {f"{n:04}.png": png_of(n) for n in range(first, first + size)}
        paths.append(write_tar(tmp_path / f"{shard}.tar", members))
        first += size
    return paths


class Skipped(list):
    """The broken rows, as `skip(name, reason)` is told them."""

    def __call__(self, name: str, reason: str) -> None:
        self.append((name, reason))


def check_every_resume(shards, expected: list[list[int]]) -> None:
    """From the start, each shard gives these rows; after any of them, the rest, with the same names and labels."""
    for shard, numbers in enumerate(expected):
        met, again = Skipped(), Skipped()
        whole: list[Encoded] = list(shards.rows(shard, 0, met))
        assert [row.data for row in whole] == [png_of(n) for n in numbers]
        assert len({row.name for row in whole}) == len(whole)
        for place, row in enumerate(whole):
            assert list(shards.rows(shard, row.following, again)) == whole[place + 1 :]
        assert set(again) <= set(met)


def numbers_of_shards() -> list[list[int]]:
    bounds = [(0, 11), (11, 12), (12, 30)]
    return [[n for n in range(first, last) if n not in BROKEN] for first, last in bounds]


def test_parquet_stream_goes_on_after_any_row(parquet):
    shards = stream_parquet(parquet)
    check_every_resume(shards, numbers_of_shards())
    assert [row.label for row in shards.rows(2, 0, Skipped())] == [n % 3 for n in numbers_of_shards()[2]]
    (name, *_), *_ = [row.name.split(" row ") for row in shards.rows(2, 4, Skipped())]
    assert name.endswith("shard 2")
    assert next(shards.rows(2, 4, Skipped())).name.endswith("row 4")


def test_filtered_hub_stream_goes_on_after_any_row(parquet):
    """Rows of other classes and rows without an image lie between those that are wanted."""
    shards = stream_hub(f"hf:{parquet[0].parent}?label=dog,emu")
    expected = [[n for n in numbers if n % 3 in (1, 2)] for numbers in numbers_of_shards()]
    check_every_resume(shards, expected)
    assert [row.label for row in shards.rows(0, 0, Skipped())] == [n % 3 - 1 for n in expected[0]]
    assert shards.class_names == ["dog", "emu"]
    assert shards.count is None


def test_tar_stream_goes_on_after_any_row(tar):
    check_every_resume(TarShards(tar), [list(range(11)), [11], list(range(12, 30))])


@pytest.mark.parametrize("buffer", [1, 4, 100])
@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_resumed_stream_draws_the_same_images_from_any_image(parquet, source, buffer):
    """Two epochs, stopped after every image; each epoch holds each readable image once."""
    wanted = [n for numbers in numbers_of_shards() for n in numbers if source == "parquet" or n % 3 > 0]
    config = DataConfig(source="x", image_size=8, channels=1, labels=True, shuffle_buffer=buffer)

    def opened() -> StreamDataset:
        hub = f"hf:{parquet[0].parent}?label=dog,emu"
        return StreamDataset(stream_parquet(parquet) if source == "parquet" else stream_hub(hub), config)

    straight, total = opened(), 2 * len(wanted)
    images, labels = straight.draw(3, range(total))
    shown = (images[:, 0, 0, 0] // 3).tolist()
    assert sorted(shown[: len(wanted)]) == sorted(shown[len(wanted) :]) == wanted
    assert labels.tolist() == [n % 3 - (source == "hub") for n in shown]
    resumed = opened()
    for stop in range(0, total, 1 if buffer == 4 else 7):
        resumed.load_state_dict(json.loads(json.dumps(straight.state_dict(stop))))
        assert torch.equal(resumed.draw(3, range(stop, total))[0], images[stop:]), stop
