"""Batches depend on (seed, step, position) alone, and every image comes once per epoch."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.data import ImageDataset, MemoryDataset, Report, open_dataset
from ddpm.data import datasets as opening_module
from ddpm.data.datasets import epoch_order
from ddpm.diffusion.timestep_samplers import UniformSampler
from ddpm.training.batches import BatchSource, place_dataset


def numbered(count: int, labels: bool = True) -> MemoryDataset:
    """Image i is filled with i, but for one column that tells left from right."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    images[..., 0] = 255
    return MemoryDataset(images, torch.arange(count) if labels else None, None, Report("numbered"))


def source(dataset: ImageDataset, batch_size: int, seed: int = 0, **options) -> BatchSource:
    return BatchSource(dataset, UniformSampler(10), batch_size=batch_size, seed=seed, **options)


def test_batch_source_gives_float_images_and_integer_labels():
    x_0, labels = source(numbered(10), 4, seed=0).images(0, range(4))
    assert x_0.dtype == torch.float32
    assert x_0.shape == (4, 1, 8, 8)
    assert labels.dtype == torch.int64
    assert torch.equal(x_0[:, 0, 0, 1], labels / 127.5 - 1)
    assert (x_0[..., 0] == 1).all()
    assert source(numbered(10, labels=False), 4, seed=0).images(0, range(4))[1] is None


@given(st.integers(1, 40), st.integers(1, 25), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_batch_source_gives_every_image_once_per_epoch(size, batch, seed):
    loader = source(numbered(size), batch, seed)
    steps = -(-3 * size // batch)
    seen = torch.cat([loader.images(step, range(batch))[1] for step in range(steps)])
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_batch_source_is_independent_of_how_the_batch_is_divided(parts, step):
    """Over ranks and micro-batches: any division of the positions gives the same images, flips and labels."""
    batch = sum(parts)
    whole, labels = source(numbered(23), batch, 7, random_flip=True).images(step, range(batch))
    loader, start, pieces = source(numbered(23), batch, 7, random_flip=True), 0, []
    for part in parts:
        pieces.append(loader.images(step, range(start, start + part)))
        start += part
    assert torch.equal(torch.cat([x for x, _ in pieces]), whole)
    assert torch.equal(torch.cat([y for _, y in pieces]), labels)
    strided = source(numbered(23), batch, 7, random_flip=True).images(step, range(0, batch, 2))
    assert torch.equal(strided[0], whole[::2])


def test_batch_source_finds_any_step_without_replaying():
    forwards, straight = source(numbered(50), 16, 3, random_flip=True), source(numbered(50), 16, 3, random_flip=True)
    for step in range(20):
        last = forwards.images(step, range(16))
    assert torch.equal(last[0], straight.images(19, range(16))[0])


def test_epoch_order_differs_between_epochs_and_seeds():
    orders = [epoch_order(1000, seed, range(epoch * 1000, epoch * 1000 + 1000)) for seed in (0, 1) for epoch in (0, 1)]
    for index, one in enumerate(orders):
        assert all((one == other).sum() < 20 for other in orders[:index])


def test_epoch_order_is_uniform():
    """Where image 0 comes, over 4,000 seeds and 8 places: a chi-square of 7 degrees stays under its 99.9% point."""
    places = torch.tensor([int((epoch_order(8, seed, range(8)) == 0).nonzero()) for seed in range(4000)])
    counts = torch.bincount(places, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3


def test_random_flip_mirrors_about_half_of_the_images():
    loader, plain = source(numbered(50), 50, 1, random_flip=True), source(numbered(50), 50, 1)
    flipped = 0
    for step in range(40):
        (x, labels), (y, same) = loader.images(step, range(50)), plain.images(step, range(50))
        assert torch.equal(labels, same)
        mirrored = x[:, 0, 0, -1] == 1
        assert torch.equal(x, torch.where(mirrored[:, None, None, None], y.flip(-1), y))
        flipped += int(mirrored.sum())
    assert abs(flipped - 1000) < 100  # 4.5 standard deviations


def test_random_flip_of_an_image_differs_between_steps():
    loader = source(numbered(1), 1, 0, random_flip=True)
    assert len({float(loader.images(step, range(1))[0][0, 0, 0, 0]) for step in range(20)}) == 2


def test_steps_gives_the_same_batches_as_at(tmp_path, monkeypatch):
    """A set decoded on the fly is read ahead in a thread; any order of asking gives what memory gives."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    memory = source(open_dataset(str(folder), image_size=16), 6, 0, random_flip=True)
    monkeypatch.setattr(opening_module, "MOST_MEMORY_BYTES", 100)
    lazy = source(open_dataset(str(folder), image_size=16), 6, 0, random_flip=True)
    for step in (0, 1, 2, 2, 1, 7, 8, 9):
        for positions in (range(3), range(3, 6)):
            assert torch.equal(lazy.images(step, positions)[0], memory.images(step, positions)[0])
    for start in (0, 5, 3):
        with contextlib.closing(lazy.steps(start)) as feed:
            for step in range(start, start + 4):
                ahead, alone = next(feed).tensors(), memory.at(step).tensors()
                assert ahead.keys() == alone.keys()
                assert all(torch.equal(ahead[name], alone[name]) for name in alone)


class Counting(ImageDataset):
    """Black images; `asked` are the numbers of each draw."""

    def __init__(self):
        self.asked, self.sixth = [], threading.Event()

    def draw(self, seed, numbers):
        self.asked.append(numbers)
        if len(self.asked) == 6:
            self.sixth.set()
        return torch.zeros(len(numbers), 1, 8, 8, dtype=torch.uint8), None

    def __len__(self):
        raise NotImplementedError

    def batch(self, indices):
        raise NotImplementedError


def test_steps_draws_each_batch_once_and_a_few_ahead():
    """Each batch has been begun before it is asked for, in the order of the steps."""
    dataset = Counting()
    loader = source(dataset, 4, positions=range(2, 4))
    with contextlib.closing(loader.steps(0)) as feed:
        for _ in range(6):
            next(feed)
    wanted = [range(4 * step + 2, 4 * step + 4) for step in range(6)]
    assert [numbers for numbers in dataset.asked if numbers in wanted] == wanted
    assert len(dataset.asked) <= len(wanted) + 3


class Remembering(UniformSampler):
    """A sampler that depends on the losses it was given: t is their number."""

    adaptive = True

    def __init__(self):
        super().__init__(10)
        self.given = 0

    def draw(self, seed, step, positions, global_batch):
        return torch.full((len(positions),), self.given), torch.ones(len(positions))

    def update(self, t, losses):
        self.given += 1


def test_steps_draws_adaptive_timesteps_late():
    """Although the images are."""
    dataset, sampler = Counting(), Remembering()
    loader = BatchSource(dataset, sampler, batch_size=4, seed=0)
    with contextlib.closing(loader.steps(0)) as feed:
        for step in range(5):
            batch = next(feed)
            assert batch.t.tolist() == [step] * 4
            loader.update_timestep_sampler(step, torch.ones(4))
        assert dataset.sixth.wait(60)


def test_batch_source_state_of_a_dataset_in_memory_is_empty():
    loader = source(numbered(5), 2, 0)
    loader.images(3, range(2))
    assert loader.state_dict(4) == {}
    loader.load_state_dict({})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_place_dataset_moves_a_small_dataset_to_the_gpu():
    loader = source(numbered(50), 8, 0, random_flip=True)
    place_dataset(loader.dataset, torch.device("cuda"))
    assert loader.dataset.images.is_cuda
    on_cpu = source(numbered(50), 8, 0, random_flip=True)
    assert torch.equal(loader.images(3, range(8))[0].cpu(), on_cpu.images(3, range(8))[0])
