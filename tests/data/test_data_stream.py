"""Streams: each image once an epoch, the same for any number of processes, found again exactly, in flat memory."""

import io
import itertools
import json
import subprocess
import sys
import tarfile
import textwrap
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.common.errors import RunStopped, UserError
from ddpm.data import DataConfig, Report, StreamDataset, open_dataset
from ddpm.data import stream as stream_module
from ddpm.data.images import BrokenFile
from ddpm.data.stream import OPEN_SHARDS, BlockReader, Encoded, StreamPosition, TarShards
from ddpm.diffusion.timestep_samplers import UniformSampler
from ddpm.training.batches import BatchSource


def loader_of(dataset: StreamDataset, batch_size: int, seed: int) -> BatchSource:
    return BatchSource(dataset, UniformSampler(10), batch_size=batch_size, seed=seed)


def png_of(number: int) -> bytes:
    """An 8x8 image that says its number: red is number // 256, green number % 256."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number // 256, number % 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Numbered:
    """Shards of the sizes given; image g of all has number g and class g % 3. `broken` numbers hold rubbish."""

    class_names = ("a", "b", "c")

    def __init__(self, sizes, broken=()):
        self.sizes, self.broken = list(sizes), set(broken)
        self.names = [str(number) for number in range(len(self.sizes))]
        self.count = sum(self.sizes)
        self.read = 0

    def rows(self, shard, start, skip):
        first = sum(self.sizes[:shard])
        for row in range(start, self.sizes[shard]):
            self.read += 1
            data = b"rubbish" if first + row in self.broken else png_of(first + row)
            yield Encoded(f"{shard}/{row}", data, (first + row) % 3, row + 1)


def stream(sizes, buffer=16, broken=(), labels=False) -> StreamDataset:
    return StreamDataset(Numbered(sizes, broken), DataConfig(image_size=8, labels=labels, shuffle_buffer=buffer))


def numbers_of(images: torch.Tensor) -> list[int]:
    """From uint8 images back to numbers."""
    return (images[:, 0, 0, 0].int() * 256 + images[:, 1, 0, 0].int()).tolist()


def drawn(dataset, start, stop, seed=0):
    return numbers_of(dataset.draw(seed, range(start, stop))[0])


def test_stream_that_is_closed_stops_reading():
    """Which Python would wait for before it leaves."""
    met, goes_on = threading.Event(), threading.Event()

    class Slow(Numbered):
        def rows(self, shard, start, skip):
            for row in super().rows(shard, start, skip):
                if row.following == 33:  # the first of the block that is read ahead
                    met.set()
                    goes_on.wait()
                yield row

    dataset = StreamDataset(Slow([100]), DataConfig(image_size=8, shuffle_buffer=16))
    dataset.draw(0, range(16, 17))
    assert met.wait(60)
    dataset.close()
    goes_on.set()
    dataset._reading.shutdown(wait=True)
    assert dataset.shards.read == 33


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 40), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_block_reader_gives_every_image_once_per_epoch(sizes, buffer, seed):
    total = sum(sizes)
    if total == 0:
        return
    reader, place, seen = BlockReader(Numbered(sizes), buffer, Report("numbered")), StreamPosition(), []
    while len(seen) < 3 * total:
        block = reader.block(seed, place)
        assert block.place.first == len(seen)
        seen += [block.rows[index].name for index in block.order]
        place = block.following
    for epoch in range(3):
        assert len(set(seen[epoch * total : (epoch + 1) * total])) == total


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 12),
)
@settings(max_examples=40, deadline=None)
def test_stream_resumes_exactly(sizes, buffer, batch, stop):
    straight = loader_of(stream(sizes, buffer), batch, 5)
    expected = [straight.images(step, range(batch))[0] for step in range(stop + 6)]
    first = loader_of(stream(sizes, buffer), batch, 5)
    for step in range(stop):
        first.images(step, range(batch))
    state = json.loads(json.dumps(first.state_dict(stop)))  # it survives a JSON checkpoint
    second = loader_of(stream(sizes, buffer), batch, 5)
    second.load_state_dict(state)
    for step in range(stop, stop + 6):
        assert torch.equal(second.images(step, range(batch))[0], expected[step])


def test_stream_resumes_without_a_replay():
    sizes, steps = [100] * 20, 200
    first = loader_of(stream(sizes, buffer=50), 8, 0)
    for step in range(steps):
        first.images(step, range(8))
    second = stream(sizes, buffer=50)
    loader = loader_of(second, 8, 0)
    loader.load_state_dict(first.state_dict(steps))
    loader.images(steps, range(8))
    assert second.shards.read < 300  # of the 1,600 that had gone by


def test_stream_resumes_exactly_with_another_batch_size():
    first, whole = loader_of(stream([9, 30, 17, 2]), 8, 1), loader_of(stream([9, 30, 17, 2]), 1, 1)
    for step in range(3):
        first.images(step, range(8))
    second = loader_of(stream([9, 30, 17, 2]), 5, 1)
    second.load_state_dict(first.state_dict(3))
    second.resume_at(3, 24)
    following = torch.cat([second.images(step, range(5))[0] for step in range(3, 6)])
    assert torch.equal(following, torch.cat([whole.images(step, range(1))[0] for step in range(24, 39)]))
    assert second.state_dict(6)["place"] == second.dataset.state_dict(39)["place"]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_stream_order_does_not_depend_on_the_number_of_processes(processes):
    """And a run stopped on 4 goes on on 2, from the place that any of them saved."""
    whole = loader_of(stream([9, 30, 17, 2]), 8, 1)
    expected = [whole.images(step, range(8))[0] for step in range(33)]

    def check(loaders, steps):
        share = 8 // len(loaders)
        for step in steps:
            parts = [one.images(step, range(rank * share, (rank + 1) * share))[0] for rank, one in enumerate(loaders)]
            assert torch.equal(torch.cat(parts), expected[step])

    loaders = [loader_of(stream([9, 30, 17, 2]), 8, 1) for _ in range(processes)]
    check(loaders, range(30))
    for state in [loader.state_dict(30) for loader in loaders]:
        others = [loader_of(stream([9, 30, 17, 2]), 8, 1) for _ in range(2)]
        for other in others:
            other.load_state_dict(state)
        check(others, range(30, 33))


def test_stream_reads_earlier_positions_again():
    dataset = stream([40, 40], buffer=10)
    expected = drawn(stream([40, 40], buffer=10), 0, 160)
    for start in (0, 100, 60, 150, 3, 90):
        assert drawn(dataset, start, start + 10) == expected[start : start + 10]


@pytest.mark.parametrize("size", [48, 50])  # 48: the last block is full, and only the next shows that the epoch is over
def test_stream_order_depends_on_seed_and_epoch(size):
    total = 4 * size
    orders = [drawn(stream([size] * 4), start, start + total, seed) for seed in (0, 1) for start in (0, total)]
    assert all(sorted(order) == list(range(total)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    dataset = stream([size] * 4)
    assert drawn(dataset, 0, total, seed=0) == orders[0]
    assert drawn(dataset, 0, total, seed=1) == orders[2]


def test_stream_shuffles_its_buffer_anew_in_each_epoch():
    """One shard, so that the order of shards says nothing."""
    orders = [drawn(stream([40], buffer=100), start, start + 40, seed) for seed in (0, 1) for start in (0, 40, 80)]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sum(a == b for a, b in zip(*pair, strict=True)) < 8 for pair in itertools.combinations(orders, 2))


def test_stream_opens_its_shards_in_another_order_in_each_epoch():
    """Shards of one image, so that the first images are those of the shards that were opened first."""
    first = [
        frozenset(drawn(stream([1] * 60, buffer=1), start, start + OPEN_SHARDS, seed))
        for seed in (0, 1)
        for start in (0, 60, 120)
    ]
    assert len(set(first)) == 6


def test_stream_buffer_mixes_the_shards():
    """With shards read side by side and a buffer, neighbours in a batch come from all over the set."""
    order = drawn(stream([100] * 8, buffer=400), 0, 400)
    assert len({number // 100 for number in order[:40]}) == 8
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 20


def test_stream_labels_match_their_images():
    images, labels = stream([20, 13], labels=True).draw(0, range(33))
    assert [number % 3 for number in numbers_of(images)] == labels.tolist()


def test_stream_replaces_broken_rows_alike_in_every_process():
    broken = {3, 4, 17}
    whole = stream([20, 13], broken=broken)
    images, _ = whole.draw(0, range(66))
    assert not broken & set(numbers_of(images))
    assert len(whole.report.skipped) == 3
    halves = stream([20, 13], broken=broken), stream([20, 13], broken=broken)
    joined = [half.draw(0, range(rank, 66, 2))[0] for rank, half in enumerate(halves)]
    assert torch.equal(joined[0], images[0::2])
    assert torch.equal(joined[1], images[1::2])


def test_stream_with_nothing_usable_is_refused():
    with pytest.raises(UserError, match="holds no images"):
        drawn(stream([0, 0]), 0, 1)
    with pytest.raises(UserError, match="no usable image"):
        drawn(stream([4], broken=range(4)), 0, 1)
    with pytest.raises(UserError, match="no shards"):
        stream([])


def test_stream_refuses_length_indices_and_another_streams_state():
    dataset = stream([4])
    assert len(dataset) == 4
    dataset.shards.count = None
    with pytest.raises(UserError, match="not known before its end"):
        len(dataset)
    with pytest.raises(UserError, match="have no numbers"):
        dataset.batch([0])
    with pytest.raises(UserError, match="its shards or settings differ"):
        dataset.load_state_dict(stream([4, 4]).state_dict(0))


def test_stream_reads_tar_shards(tmp_path, write_tar):
    for shard in range(5):
        members = {f"{number:04}.png": png_of(number) for number in range(shard * 30, shard * 30 + 30)}
        write_tar(tmp_path / f"{shard}.tar", members)
    whole = bytearray((tmp_path / "3.tar").read_bytes())
    dataset = open_dataset(str(tmp_path), image_size=8, streaming=True, shuffle_buffer=40)
    assert sorted(drawn(dataset, 0, 150)) == list(range(150))
    with pytest.raises(UserError, match="does not say which classes"):
        open_dataset(str(tmp_path), image_size=8, streaming=True, labels=True)
    (tmp_path / "3.tar").write_bytes(whole[: len(whole) // 2])
    shortened = open_dataset(str(tmp_path), image_size=8, streaming=True, shuffle_buffer=40)
    seen = set(drawn(shortened, 0, 140))
    assert {*range(90), *range(120, 150)} <= seen <= set(range(150))
    assert shortened.report.skipped


def test_stream_resumes_after_it_was_moved(tmp_path, write_tar):
    write_tar(tmp_path / "here" / "0.tar", {f"{number:04}.png": png_of(number) for number in range(40)})
    options = {"image_size": 8, "streaming": True, "shuffle_buffer": 10}
    dataset = open_dataset(str(tmp_path / "here"), **options)
    expected = drawn(dataset, 20, 60)
    state = dataset.state_dict(30)
    (tmp_path / "here").rename(tmp_path / "there")
    again = open_dataset(str(tmp_path / "there"), **options)
    again.load_state_dict(state)
    assert drawn(again, 30, 60) == expected[10:]


def test_stream_reads_parquet_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    for shard in range(4):
        numbers = range(shard * 25, shard * 25 + 25)
        rows = {"image": [{"bytes": png_of(n), "path": None} for n in numbers], "label": [n % 2 for n in numbers]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{shard}.parquet")
    options = {"image_size": 8, "streaming": True, "labels": True, "shuffle_buffer": 30}
    dataset = open_dataset(str(tmp_path), **options)
    images, labels = dataset.draw(0, range(100))
    assert sorted(numbers_of(images)) == list(range(100))
    assert [number % 2 for number in numbers_of(images)] == labels.tolist()
    expected = dataset.draw(0, range(130, 190))[0]
    again = open_dataset(str(tmp_path), **options)
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict(130))))
    assert torch.equal(again.draw(0, range(130, 190))[0], expected)


def test_stream_that_breaks_off_stops_the_run(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png_of(n), "path": None} for n in range(20)]}
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).to_parquet(path)
    dataset = open_dataset(str(path), image_size=8, streaming=True)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RunStopped, match="broke off"):
        dataset.draw(0, range(5))


def test_stream_memory_stays_flat():
    """30,000 images stream by; what the process holds at the end is what it held after the first 10,000."""
    program = """
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        import test_data_stream
        from test_data_stream import Numbered, DataConfig, StreamDataset
        png = test_data_stream.png_of(1)
        test_data_stream.png_of = lambda number: bytes(bytearray(png))
        dataset = StreamDataset(Numbered([1000] * 30), DataConfig(image_size=8, shuffle_buffer=500))
        peaks = []
        for start in range(0, 30_000, 500):
            dataset.draw(0, range(start, start + 20))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(peaks[20], peaks[-1])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(__file__).rpartition("/")[0]]
    early, late = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    scale = 1024 if sys.platform == "darwin" else 1
    assert (late - early) / scale < 8 * 1024  # KiB


def test_resumed_stream_reads_what_lies_before_its_checkpoint_again():
    """Also when it has gone on since: nothing but the start of all is sure to be known."""
    first = stream([40, 40])
    before = drawn(first, 0, 40)
    drawn(first, 40, 60)
    resumed = stream([40, 40])
    resumed.load_state_dict(first.state_dict(56))
    drawn(resumed, 56, 80)
    assert drawn(resumed, 0, 40) == before


@pytest.mark.parametrize("size", [32, 40])  # the last block is full, or not
def test_each_epoch_counts_its_blocks_from_0(size):
    """The shuffle of a block comes from (seed, epoch, block), so their numbers are a promise to resumed runs."""
    reader = BlockReader(Numbered([size]), 16, Report("x"))
    place, places = StreamPosition(), []
    for _ in range(7):
        block = reader.block(0, place)
        places.append((block.place.epoch, block.place.block, block.place.first))
        place = block.following
    blocks = -(-size // 16)
    assert places == [(n // blocks, n % blocks, n // blocks * size + n % blocks * 16) for n in range(7)]


def test_tar_stream_names_an_image_that_the_disk_does_not_give(tmp_path, write_tar, monkeypatch):
    """For example, if the archive was cut off after it was listed. The stream continues with the next image."""
    path = write_tar(tmp_path / "x.tar", {f"{number}.png": png_of(number) + bytes(99 * number) for number in range(3)})
    read = stream_module.read_tar_image

    def failing(shard, offset, size):
        if size == sizes[1]:
            raise BrokenFile("input/output error")
        return read(shard, offset, size)

    with tarfile.open(path) as archive:
        sizes = [member.size for member in archive]
    assert len(set(sizes)) == 3
    monkeypatch.setattr(stream_module, "read_tar_image", failing)
    met = []
    rows = list(TarShards([path]).rows(0, 0, lambda name, reason: met.append((name, reason))))
    assert [(row.name, row.following) for row in rows] == [("x.tar/0.png", 1), ("x.tar/2.png", 3)]
    assert met == [("x.tar/1.png", "input/output error")]
