"""What a run draws, plans and does: any share of a batch, every chance as configured, and each step at its place."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm.common.errors import UserError
from ddpm.common.randomness import derive_seed
from ddpm.data import MemoryDataset, Report
from ddpm.data.datasets import epoch_order
from ddpm.diffusion.timestep_samplers import LossAwareSampler, StratifiedSampler, UniformSampler
from ddpm.interop.diffusers import Student
from ddpm.networks.unet import UNet
from ddpm.training import compute, tracking, train
from ddpm.training.batches import BatchSource
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.compute import plan_compute
from ddpm.training.config import TrainingConfig
from ddpm.training.tracking import Previews
from ddpm.training.trainer import Trainer


def numbered(count: int) -> MemoryDataset:
    """Image i is filled with i mod 200, but for a column that tells left from right; its class is i mod 4."""
    images = (torch.arange(count) % 200).to(torch.uint8)[:, None, None, None].repeat(1, 2, 3, 5)
    images[..., 0] = 255
    return MemoryDataset(images, torch.arange(count) % 4, None, Report("numbered"))


def source(batch_size: int, seed: int = 3, sampler=None, count: int = 57, **options) -> BatchSource:
    options = {"random_flip": True, "null_label": 4, "class_drop": 0.3} | options
    return BatchSource(numbered(count), sampler or UniformSampler(900), batch_size=batch_size, seed=seed, **options)


def loss_aware() -> LossAwareSampler:
    """With a history, so that timesteps and weights differ."""
    sampler = LossAwareSampler(30)
    for number in range(10):
        sampler.update(torch.arange(30), torch.linspace(0.1, 3, 30) + number)
    return sampler


@pytest.mark.parametrize("sampler", [lambda: UniformSampler(900), lambda: StratifiedSampler(900), loss_aware])
@pytest.mark.parametrize("bounds", [[0, 100], [0, 1, 100], [0, 31, 32, 33, 64, 100], [0, 50, 100], [0, 70, 96, 100]])
def test_every_share_of_a_batch_is_cut_from_the_same_numbers(sampler, bounds):
    """Beyond the 32 positions that are drawn at once, at their borders, and with any number of processes."""
    whole = source(100, sampler=sampler()).at(7).tensors()
    parts = [
        source(100, sampler=sampler(), positions=range(first, last)).at(7).tensors() for first, last in pairwise(bounds)
    ]
    assert set(whole) == {"x_0", "labels", "t", "weight", "noise", "dropout_keys"}
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor), name


def test_images_come_in_the_shuffled_order_with_their_own_classes():
    """Number step·batch_size + position of the endless order; a run whose batch size changed goes on where it was."""
    loader = source(10, class_drop=0.0, random_flip=False)
    for step in (0, 4, 5, 11):
        batch = loader.at(step)
        expected = epoch_order(57, 3, range(10 * step, 10 * step + 10))
        assert torch.equal(batch.x_0[:, 1, 2, 3], expected / 127.5 - 1)
        assert torch.equal(batch.labels, expected % 4)
    loader.resume_at(4, 33)
    assert torch.equal(loader.at(5).labels, epoch_order(57, 3, range(43, 53)) % 4)
    assert torch.equal(loader.at(4).labels, epoch_order(57, 3, range(33, 43)) % 4)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.8])
def test_class_drop_is_the_fraction_that_loses_its_class(fraction):
    """Of 6,000 images, within 4.5 standard deviations; the others keep theirs, and what is lost changes every step."""
    loader, plain = source(100, class_drop=fraction, count=400), source(100, class_drop=0.0, count=400)
    dropped = []
    for step in range(60):
        labels, kept = loader.at(step).labels, plain.at(step).labels
        lost = labels == 4
        assert torch.equal(labels[~lost], kept[~lost])
        dropped.append(lost)
    share = torch.cat(dropped).double().mean()
    assert abs(share - fraction) <= 4.5 * math.sqrt(fraction * (1 - fraction) / 6000)
    if fraction:
        assert not torch.equal(dropped[0], dropped[1])
        other = source(100, seed=4, class_drop=fraction, count=400).at(0).labels == 4
        assert not torch.equal(dropped[0], other)


def test_class_drop_needs_a_null_class():
    assert torch.equal(source(50, null_label=None).at(0).labels, source(50, class_drop=0.0).at(0).labels)


def test_noise_timesteps_keys_flips_and_drops_are_independent_and_new_at_every_step():
    """Normal noise of mean 0 and variance 1; no two steps, seeds or positions share it, and nothing is correlated."""
    batches = [source(200, seed=seed, count=400).at(step) for seed, step in ((3, 0), (3, 1), (4, 0))]
    noise = torch.stack([batch.noise for batch in batches]).flatten(2)  # (3, 200, 30)
    assert abs(noise.mean()) < 4.5 / math.sqrt(noise.numel())
    assert abs(noise.var() - 1) < 4.5 * math.sqrt(2 / noise.numel())
    flat = noise.flatten(1)
    assert len({tuple(row.tolist()) for row in noise.flatten(0, 1)}) == 600
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((flat[a] * flat[b]).mean()) < 4.5 / math.sqrt(flat.shape[1])
    assert len({int(key) for batch in batches for key in batch.dropout_keys}) == 600
    assert len({tuple(batch.t.tolist()) for batch in batches}) == 3
    batch = batches[0]
    flips = (batch.x_0[:, 0, 0, 0] != 1).double()
    columns = torch.stack(
        [
            flips,
            (batch.labels == 4).double(),
            batch.t.double(),
            batch.dropout_keys.double(),
            batch.noise.mean((1, 2, 3)),
        ]
    )
    correlations = torch.corrcoef(columns) - torch.eye(5)
    assert correlations.abs().max() < 4.5 / math.sqrt(200)


def test_no_two_draws_share_a_stream(monkeypatch):
    """Flips, drops, noise and dropout keys, of any block, step and seed: streams of one seed would be correlated."""
    asked = []
    monkeypatch.setattr("ddpm.training.batches.derive_seed", lambda *words: asked.append(words) or derive_seed(*words))
    for seed in (3, 4):
        for step in (0, 1):
            source(70, seed=seed).at(step)
    assert len(asked) == 2 * 2 * (1 + 3 * 3)  # flips are drawn at once, the others in blocks of 32
    assert len({"/".join(map(str, words)) for words in asked}) == len(asked)


def test_adaptive_sampler_is_told_the_losses_of_the_whole_batch_at_their_timesteps(monkeypatch):
    """Each process gives its own share; losses that are not finite are left out."""
    told = []

    class Watched(UniformSampler):
        adaptive = True

        def update(self, t, losses):
            told.append((t, losses))

    loader = source(10, sampler=Watched(900), positions=range(4, 7))
    others = torch.tensor([1.0, 2, 3, 4, 0, 0, 0, 8, 9, 10])
    monkeypatch.setattr("ddpm.training.batches.all_sum", lambda tensor: tensor.add_(others))
    loader.update_timestep_sampler(5, torch.tensor([5.0, 6.0, 7.0]))
    (t, losses) = told.pop()
    assert losses.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert torch.equal(t, source(10).at(5).t)
    loader.update_timestep_sampler(5, torch.tensor([5.0, torch.nan, 7.0]))
    assert not told


def test_trainer_builds_its_batches_from_the_configuration(tiny, tmp_path, monkeypatch):
    config = tiny(
        batch_size=12,
        seed=5,
        class_drop=0.25,
        **{"diffusion.timestep_sampler": "stratified", "data.random_flip": False},
    )
    trainer = Trainer(config, tmp_path / "run")
    batches = trainer.batches
    assert (batches.batch_size, batches.seed, batches.positions) == (12, 5, range(12))
    assert (batches.random_flip, batches.class_drop, batches.null_label) == (False, 0.25, 2)
    assert isinstance(batches.timestep_sampler, StratifiedSampler)
    assert batches.timestep_sampler.timesteps == 20
    assert trainer.learner.batch_size == 12
    assert trainer.network.num_classes == 3
    monkeypatch.setattr("ddpm.training.trainer.my_share", lambda num: range(num // 4, num // 2))
    plain = Trainer(tiny(class_drop=0.0), tmp_path / "plain")
    assert plain.batches.positions == range(2, 4)
    assert plain.batches.null_label is None
    assert plain.network.num_classes == 2


def test_run_is_algorithm_1_from_the_first_step_to_the_last(tiny, files, tmp_path):
    """Five steps written out with PyTorch's Adam: batches in order, the rate of each step, weights of the loss, EMA."""
    config = tiny(
        steps=5,
        micro_batch=3,
        grad_clip=0.5,
        class_drop=0.3,
        ema_warmup=True,
        log_every=2,
        checkpoint_every=5,
        **{"network.dropout": 0.3, "diffusion.weighting": "min_snr", "diffusion.prediction": "v"},
    )
    trainer = Trainer(config, tmp_path / "run")
    network: UNet = copy.deepcopy(trainer.network).train()
    batches = [trainer.batches.at(step) for step in range(5)]
    trainer.close()
    run = train(config, tmp_path / "run")

    adam = torch.optim.Adam(network.parameters(), lr=1.0)
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    rates = [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3 * (1 + math.cos(math.pi / 2)) / 2]
    alphas_cumprod = (1 - torch.linspace(0.001, 0.2, 20, dtype=torch.float64)).cumprod(0)
    numbers = []
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        kept = alphas_cumprod[batch.t].float().view(-1, 1, 1, 1)
        x_t = kept.sqrt() * batch.x_0 + (1 - kept).sqrt() * batch.noise
        target = kept.sqrt() * batch.noise - (1 - kept).sqrt() * batch.x_0
        snr = kept / (1 - kept)
        weight = snr.clamp(max=5) / (snr + 1)  # Hang et al. 2023 for v
        output = network(x_t, batch.t.float(), batch.labels, batch.dropout_keys)
        loss = (weight * (output - target).square()).mean()
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in network.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
        numbers.append((loss.item(), norm.item()))
    records = files.records(run, "step", "loss", "gradient_norm", "learning_rate", "images", "epoch")
    assert [record["step"] for record in records] == [2, 4, 5]
    for record, steps in zip(records, ([0, 1], [2, 3], [4]), strict=True):
        means = [sum(numbers[step][i] for step in steps) / len(steps) for i in range(2)]
        assert (record["loss"], record["gradient_norm"]) == pytest.approx(means, rel=1e-4)
        assert record["learning_rate"] == pytest.approx(rates[steps[-1]])
        assert record["images"] == 8 * record["step"]
        assert record["epoch"] == pytest.approx(8 * record["step"] / 30, abs=1e-4)
    parts = Checkpoints(run / "checkpoints", 3).newest().parts
    for name, p in network.named_parameters():
        torch.testing.assert_close(parts["network"][name], p.detach(), rtol=0, atol=3e-5, msg=name)
        torch.testing.assert_close(parts["ema"][name], average[name], rtol=0, atol=3e-5, msg=name)


def test_tasks_are_due_at_their_intervals_and_after_the_last_step(tiny, tmp_path):
    intervals = {"log_every": 2, "preview_every": 3, "evaluate_every": 4, "checkpoint_every": 5}
    config = tiny(steps=11, **intervals)
    trainer = Trainer(config, tmp_path / "run", evaluator=lambda model: {"fid": 0.0})
    names = {"log": 2, "preview": 3, "evaluate": 4, "checkpoint": 5}
    for step in range(1, 11):
        assert trainer.due(step) == {name for name, every in names.items() if step % every == 0}
    assert trainer.due(11) == set(names)
    trainer.evaluator = None
    assert trainer.due(4) == {"log"}
    quiet = Trainer(tiny(steps=11, **intervals | {"preview_every": 0, "evaluate_every": 0}), tmp_path / "run")
    assert quiet.due(11) == {"log", "checkpoint"}


def test_progress_counts_the_images_of_all_processes(tiny, tmp_path):
    """A process that holds three images of eight."""
    trainer = Trainer(tiny(), tmp_path / "run")
    trainer.network.train()
    for step in (1, 2):
        trainer.step(next(trainer.batches.at(step - 1).split(3)))
        assert (trainer.progress.step, trainer.progress.images) == (step, 8 * step)


@pytest.fixture
def planned(monkeypatch):
    """planned(has, processes, **options) -> the plan on a machine of so many bytes: 1,000 are fixed, 100 per image."""

    def plan(has: int, processes: int, **options):
        # two parameters, each six times in float32, and the images; an image's activations and what a step adds
        monkeypatch.setattr(compute, "dataset_bytes", lambda dataset, device: 1000 - 2 * 6 * 4)
        monkeypatch.setattr(compute, "activation_bytes", lambda network, dtype: 100 / compute.TRANSIENT + 0.01)
        monkeypatch.setattr(compute, "total_memory", lambda device: has)
        monkeypatch.setattr(compute, "world_size", lambda: processes)
        monkeypatch.setattr(compute, "local_world_size", lambda: 1)
        return plan_compute(TrainingConfig(**options), nn.Linear(1, 1), numbered(4), torch.device("cpu"))[0]

    return plan


@pytest.mark.parametrize(
    ("batch_size", "has", "asked", "processes", "expected"),
    [
        (24, 2 * (1000 + 5 * 100), "auto", 1, 5),  # five fit; five parts of five images at most
        (24, 2 * (1000 + 7 * 100), "auto", 1, 6),  # seven fit: four parts of six
        (24, 2 * (1000 + 24 * 100), "auto", 1, 24),
        (24, 2 * (1000 + 999 * 100), "auto", 1, 24),
        (25, 2 * (1000 + 24 * 100), "auto", 1, 13),
        (24, 10**6, 7, 1, 7),
        (24, 10**6, 99, 1, 24),
        (25, 10**6, "auto", 4, 7),  # the largest share
        (25, 10**6, 3, 4, 3),
    ],
)
def test_micro_batch_is_the_largest_that_keeps_to_half_of_the_memory(
    planned, batch_size, has, asked, processes, expected
):
    plan = planned(has, processes, batch_size=batch_size, micro_batch=asked, precision="fp32")
    assert (plan.micro_batch, plan.processes, plan.dtype) == (expected, processes, torch.float32)
    assert not plan.compile
    assert not plan.scales_loss


def test_run_takes_one_image_at_a_time_while_all_of_the_memory_holds_it(planned):
    assert planned(1100, 1, batch_size=24).micro_batch == 1
    with pytest.raises(UserError, match="a smaller network or image"):
        planned(1099, 1, batch_size=24)
    assert planned(1300, 1, batch_size=24, micro_batch=3).micro_batch == 3
    with pytest.raises(UserError, match=r"a smaller training\.micro_batch"):
        planned(1299, 1, batch_size=24, micro_batch=3)
    with pytest.raises(UserError, match="less than one image for each of 4 processes"):
        planned(10**6, 4, batch_size=3)
    assert planned(10**6, 4, batch_size=4).micro_batch == 1


def draw_preview(model, num: int, steps: int, seed: int) -> torch.Tensor:
    config = TrainingConfig(preview_images=num, preview_steps=steps, seed=seed)
    return Previews(Path("run"), model, config).draw(model)  # the data only matter for the drift


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_preview_is_the_same_from_any_number_of_processes(model, monkeypatch, processes):
    """Three batches, which the processes sample in turn: the images of `sample`, in their order."""
    whole = model.sample(40, steps=3, seed=6)
    shares: list[list] = []
    monkeypatch.setattr(tracking, "world_size", lambda: processes)
    for process in range(processes):
        monkeypatch.setattr(tracking, "rank", lambda process=process: process)
        monkeypatch.setattr(tracking, "gather", lambda mine: shares.append(mine) or mine)
        draw_preview(model, 40, 3, 6)
    assert [len(share) for share in shares] == [len(range(process, 3, processes)) for process in range(processes)]
    monkeypatch.setattr(tracking, "gather", lambda mine: [part for share in shares for part in share])
    assert torch.equal(draw_preview(model, 40, 3, 6), whole)


def test_preview_takes_the_steps_asked_for_up_to_all_or_a_students_own(model):
    """T is 50."""
    for steps, taken in ((7, 7), (400, 50)):
        assert torch.equal(draw_preview(model, 2, steps, 1), model.sample(2, steps=taken, seed=1))
    model.student = Student(steps=2)
    assert torch.equal(draw_preview(model, 2, 7, 1), model.sample(2, steps=2, sampler="ddim", seed=1))
