"""The cache: where it is, how many files are open, what is damaged, whom a process that waits takes for dead."""

import os
import resource
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.common.errors import RunStopped
from ddpm.evaluation import cache as cache_module
from ddpm.evaluation.cache import Chunks, cache_folder, sign_of_life
from ddpm.evaluation.features import Columns, extract, load_features
from ddpm.evaluation.images import GeneratedImages
from ddpm.evaluation.likelihood import evaluate_likelihood


def test_more_chunks_are_read_than_files_may_be_open():
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


def test_columns_take_no_memory_for_the_others():
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


def test_the_place_of_the_cache(monkeypatch):
    """What is set to nothing would be the folder one happens to be in."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    monkeypatch.setenv("DDPM_CACHE", "~/mine")
    assert cache_folder() == Path("/home/me/mine")
    monkeypatch.setenv("DDPM_CACHE", "")
    assert cache_folder() == Path("/home/me/elsewhere/ddpm")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/me/.cache/ddpm")


@pytest.mark.parametrize("left", [0, 60, 200])
def test_a_damaged_chunk_is_removed_and_made_anew(left):
    """Nothing of the file is left, a part of its header, or a part of its rows."""
    settings = {"of": "a test"}
    chunks = Chunks("features", settings, total=40, chunk=20)
    for start in chunks.starts:
        chunks.write(start, np.arange(start, start + 20))
    os.truncate(chunks.path(20), left)
    chunks = Chunks("features", settings, total=40, chunk=20)
    with pytest.raises(RunStopped, match=r"00000020-00000040.npy was damaged and is removed: run the command again"):
        chunks[:]
    assert chunks.missing() == [20]


def test_a_chunk_is_on_the_disk_before_it_has_its_name(monkeypatch):
    chunks = Chunks("features", {"of": "a test"}, total=1, chunk=1)
    flushed, fsync = [], os.fsync

    def watch(handle):
        flushed.append((os.fstat(handle).st_size, chunks.path(0).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    chunks.write(0, np.zeros(1))
    assert (chunks.path(0).stat().st_size, False) in flushed


def test_a_full_disk_leaves_nothing_half_written():
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


class Timer:
    """Stands for `time`: every sleep takes half an hour, and then `happens` is told how many there were."""

    def __init__(self, happens):
        self.happens, self.sleeps = happens, 0

    def monotonic(self):
        return 1800.0 * self.sleeps

    def sleep(self, seconds):
        self.sleeps += 1
        time.sleep(0.02)  # the dates of files are coarse
        self.happens(self.sleeps)


def test_who_gives_signs_of_life_is_waited_for(monkeypatch):
    chunks = Chunks("features", {"of": "a test"}, total=1, chunk=1)
    monkeypatch.setattr(
        cache_module, "time", Timer(lambda n: sign_of_life() if n < 10 else chunks.write(0, np.zeros(1)))
    )
    chunks.wait()
    assert cache_module.time.sleeps == 10


def test_who_gives_none_is_taken_for_dead(monkeypatch):
    chunks = Chunks("features", {"of": "a test"}, total=1, chunk=1)
    sign_of_life()
    monkeypatch.setattr(cache_module, "time", Timer(lambda n: None))
    with pytest.raises(RunStopped, match="run the command again"):
        chunks.wait()


def test_drawing_extracting_and_coding_give_signs_of_life(model, cache):
    """More often than once a chunk."""
    seen = []

    def watch(network, *_):
        alive = cache / "evaluation" / "alive"
        seen.append(alive.stat().st_mtime_ns if alive.exists() else 0)
        time.sleep(0.02)

    def changes():
        found = len(set(seen))
        seen.clear()
        return found

    model.network.register_forward_hook(watch)
    images = GeneratedImages(model, 2, steps=4, precision="fp32")
    images.prepare(progress=False)
    assert changes() > 2
    evaluate_likelihood(model, images[:], budget=20, progress=False)
    assert changes() > 2
    many = GeneratedImages(model, 70, steps=1)
    many.prepare(progress=False)
    network = load_features("builtin", torch.device("cpu"))
    compute = network.compute
    object.__setattr__(network, "compute", lambda batch: (watch(None), compute(batch))[1])
    seen.clear()
    extract(many, network, progress=False)
    assert changes() > 2
