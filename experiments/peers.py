"""The other libraries' training recipes, as their documentation gives them, to be run for a number of steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDPMPipeline
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.contestants import Contestant, Diffusers, Lucidrains
from benchmarks.problems import Problem
from ddpm.data import ImageDataset

WARM_UP, FEWEST, LEAST_SECONDS = 3, 5, 2.0
ANCESTRAL, DDIM = 100, 50  # steps an image


@dataclass(frozen=True)
class Recipe:
    """title: for tables; batch: images a step; low: of the range [low, 1] in which images are given; build: the
    contestant; average: the module that holds its averaged weights, put there when training is over; draw: so many
    images in [-1, 1]."""

    title: str
    batch: int
    low: float
    build: Callable[[Problem, torch.device], Contestant]
    average: Callable[[Contestant], nn.Module]
    draw: Callable[[Contestant, int], Tensor]


def diffusers_average(peer: Diffusers) -> nn.Module:
    peer.average.copy_to(peer.network.parameters())
    return peer.network


def diffusers_draw(peer: Diffusers, num: int) -> Tensor:
    """Ancestral, as `DDPMPipeline` does: after so short a training DDIM's steps, of any number, leave noise in the
    images, and those of DPM-Solver++ diverge."""
    pipeline = DDPMPipeline(peer.network, peer.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num, num_inference_steps=ANCESTRAL, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def lucidrains(problem: Problem, device: torch.device) -> Lucidrains:
    """The `Trainer` with the learning rate of its README."""
    peer = Lucidrains(problem, device)
    for group in peer.optimizer.param_groups:
        group["lr"] = 8e-5
    return peer


def lucidrains_average(peer: Lucidrains) -> nn.Module:
    peer.diffusion.load_state_dict(peer.average.ema_model.state_dict())
    return peer.diffusion


def lucidrains_draw(peer: Lucidrains, num: int) -> Tensor:
    """DDIM, which `sampling_timesteps` below 1,000 chooses there; 1,000 ancestral steps give no better images."""
    peer.diffusion.sampling_timesteps, peer.diffusion.is_ddim_sampling = DDIM, True
    return peer.diffusion.sample(batch_size=num).cpu() * 2 - 1


PEERS = {
    "diffusers": Recipe(
        "Diffusers, train_unconditional.py",
        16,
        -1.0,
        Diffusers,  # on a network of the same shape as ours
        diffusers_average,
        diffusers_draw,
    ),
    "lucidrains": Recipe(
        "denoising-diffusion-pytorch, Trainer",
        64,  # two batches of 32 a step, accumulated, there; one of 64 is the same and sooner
        0.0,
        lucidrains,
        lucidrains_average,
        lucidrains_draw,
    ),
}


def train(name: str, problem: Problem, dataset: ImageDataset, seconds: float, out: Path, device: torch.device) -> dict:
    """Train a peer for so many seconds, its averaged weights to out/average.safetensors; returns what it came to."""
    recipe = PEERS[name]
    problem = replace(problem, training_batch=recipe.batch)
    steps = max(2, round(seconds / seconds_a_step(prepared(recipe, problem, dataset, device))))
    torch.manual_seed(0)
    peer = prepared(recipe, problem, dataset, device)
    course = learning_rates(peer, steps)
    began = time.monotonic()
    for _ in range(steps):
        peer.train()
        if course is not None:
            course.step()
    taken = time.monotonic() - began
    parameters = sum(p.numel() for p in peer.network.parameters())
    save_file({key: value.contiguous() for key, value in recipe.average(peer).state_dict().items()}, weights(out))
    return {"steps": steps, "batch_size": recipe.batch, "seconds": taken, "parameters": parameters}


def prepared(recipe: Recipe, problem: Problem, dataset: ImageDataset, device: torch.device) -> Contestant:
    """A peer that trains on `dataset`."""
    peer = recipe.build(problem, device)
    peer.batches = endless(dataset, recipe.batch, recipe.low)
    return peer


def learning_rates(peer: Contestant, steps: int) -> LRScheduler | None:
    """Diffusers' script ends at 0 by a half cosine, after 500 steps of warm-up; lucidrains' trainer has no course."""
    if not isinstance(peer, Diffusers):
        return None
    return get_scheduler("cosine", peer.optimizer, num_warmup_steps=500, num_training_steps=steps)


def endless(dataset: ImageDataset, size: int, low: float) -> Iterator[list[Tensor]]:
    """Shuffled batches of images in [low, 1], each mirrored with probability 1/2, without end."""
    while True:
        for rows in torch.randperm(len(dataset)).split(size):
            images = dataset.batch(rows)[0]
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            if len(rows) == size:
                yield [torch.where(mirrored, images.flip(-1), images) / 255 * (1 - low) + low]


def seconds_a_step(peer: Contestant) -> float:
    """As `ddpm.training.dry_run` measures it."""
    for _ in range(WARM_UP):
        peer.train()
    began, steps = time.monotonic(), 0
    while steps < FEWEST or time.monotonic() - began < LEAST_SECONDS:
        peer.train()
        steps += 1
    return (time.monotonic() - began) / steps


def draw(name: str, problem: Problem, num: int, out: Path, device: torch.device) -> Iterator[Tensor]:
    """Batches of `num` images in all, float32 in [-1, 1], drawn by the library; in bf16, as ours are."""
    recipe = PEERS[name]
    peer = recipe.build(problem, device)
    recipe.average(peer).load_state_dict(load_file(weights(out)))
    peer.network.eval()
    for first in range(0, num, problem.sampling_batch):
        torch.manual_seed(first)
        with torch.autocast(device.type, torch.bfloat16):
            yield recipe.draw(peer, min(problem.sampling_batch, num - first)).float()


def weights(out: Path) -> Path:
    return out / "average.safetensors"
