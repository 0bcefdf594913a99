"""The cache on disk: its folder, open files, damaged chunks, and sharing between processes."""

import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ddpm.common.errors import RunStopped
from ddpm.evaluation.cache import Chunks, cache_folder
from ddpm.evaluation.features import Columns


def test_chunks_read_more_files_than_may_be_open():
    chunks = Chunks("features", {"of": "a test"}, total=600, chunk=2)
    for start in chunks.starts:
        chunks.write(start, np.arange(start, start + 2))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, most[1]))  # macOS allows 256
    try:
        assert chunks[:].tolist() == list(range(600))
        assert [row for block in chunks.blocks() for row in block.tolist()] == list(range(600))
        assert chunks[[599, 0, 300, 598]].tolist() == [599, 0, 300, 598]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


def test_columns_load_only_their_own_values():
    """The three channel means beside 2,048 features."""
    chunks = Chunks("features", {"of": "a test"}, total=4000, chunk=500)
    for start in chunks.starts:
        chunks.write(start, np.arange(500.0, dtype=np.float32)[:, None] + np.arange(2051))
    means = Columns(chunks, slice(2048, None))
    tracemalloc.start()
    found = means[:]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, chunks[:][:, 2048:])
    np.testing.assert_array_equal(means[[3999, 7]], chunks[[3999, 7]][:, 2048:])
    assert peak < 20 * found.nbytes
    assert found.base is None


def test_chunks_read_rows_where_others_are_missing_and_no_rows_at_all():
    chunks = Chunks("features", {"of": "a test"}, total=5, chunk=2)
    chunks.write(2, np.array([[2.0, 20.0], [3.0, 30.0]]))
    assert chunks[[3, 2]].tolist() == [[3, 30], [2, 20]]
    assert chunks[[3]].tolist() == [[3, 30]]
    small = Chunks("features", {"of": "one chunk"}, total=1, chunk=2)
    small.write(0, np.ones((1, 3), dtype=np.float16))
    for nothing in ([], slice(1, None)):
        found = small[nothing]
        assert (found.shape, found.dtype) == ((0, 3), np.float16)


def test_chunks_wait_for_all_others_before_they_look(monkeypatch):
    chunks = Chunks("features", {"of": "a test"}, total=3, chunk=2)
    chunks.write(0, np.arange(2))
    monkeypatch.setattr("ddpm.evaluation.cache.barrier", lambda: chunks.write(2, np.arange(1)))
    chunks.wait()


def test_cache_folder_ignores_empty_variables(monkeypatch):
    """Otherwise an empty variable would mean the current folder."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    monkeypatch.setenv("DDPM_CACHE", "~/mine")
    assert cache_folder() == Path("/home/me/mine")
    monkeypatch.setenv("DDPM_CACHE", "")
    assert cache_folder() == Path("/home/me/elsewhere/ddpm")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/me/.cache/ddpm")


@pytest.mark.parametrize("left", [0, 60, 200])
def test_chunks_remove_a_damaged_file(left):
    """`left` bytes: none, part of the header, or part of the rows."""
    settings = {"of": "a test"}
    chunks = Chunks("features", settings, total=40, chunk=20)
    for start in chunks.starts:
        chunks.write(start, np.arange(start, start + 20))
    os.truncate(chunks.path(20), left)
    chunks = Chunks("features", settings, total=40, chunk=20)
    with pytest.raises(RunStopped, match=r"00000020-00000040.npy was damaged and is removed: run the command again"):
        chunks[:]
    assert chunks.missing() == [20]


def test_chunks_write_flushes_before_it_renames(monkeypatch):
    chunks = Chunks("features", {"of": "a test"}, total=1, chunk=1)
    flushed, fsync = [], os.fsync

    def watch(handle):
        flushed.append((os.fstat(handle).st_size, chunks.path(0).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    chunks.write(0, np.zeros(1))
    assert (chunks.path(0).stat().st_size, False) in flushed


def test_chunks_write_leaves_nothing_on_a_full_disk():
    chunks = Chunks("features", {"of": "a test"}, total=1, chunk=1)
    before = sorted(chunks.folder.iterdir())
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            chunks.write(0, np.zeros((1, 1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert sorted(chunks.folder.iterdir()) == before


def test_chunks_wait_stops_if_chunks_are_missing_after_all_processes_finished():
    chunks = Chunks("features", {"of": "a test"}, total=3, chunk=1)
    chunks.write(1, np.zeros(1))
    with pytest.raises(RunStopped, match=r"2 chunks of .* are missing: .* run the command again"):
        chunks.wait()
    for start in chunks.missing():
        chunks.write(start, np.zeros(1))
    chunks.wait()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_chunks_my_missing_divides_the_missing_chunks_among_processes(monkeypatch, world):
    chunks = Chunks("features", {"of": "a test"}, total=10, chunk=2)
    chunks.write(4, np.zeros(2))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    shares = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        shares += chunks.my_missing()
    assert shares == [0, 2, 6, 8]
