"""Compare this package's training recipe with those of other libraries after the same few minutes of training.

    CUDA_VISIBLE_DEVICES="" python -m experiments.quality.time_to_quality train ours --minutes 10
    CUDA_VISIBLE_DEVICES="" python -m experiments.quality.time_to_quality train diffusers --minutes 10
    python -m experiments.quality.time_to_quality evaluate

Contestants are `ours`, `diffusers` and `lucidrains`, each as its documentation gives the recipe, all unconditional, all
on Fashion-MNIST with random flips. A short measurement turns the time into a number of steps, so that a learning rate
that decays is at its end in time. Each writes RUNS/CONTESTANT/trained.json. `evaluate` takes the contestants that are
trained: it samples with each one's own library, compares the samples with the test images, and writes
time_to_quality.json and time_to_quality_CONTESTANT.png. The rows of contestants that are not trained in RUNS stay as
they were.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ddpm.common.errors import UserError
from ddpm.common.files import atomic_write
from ddpm.common.hardware import default_device
from ddpm.common.pixels import save_grid, to_float, to_uint8
from ddpm.data import ImageDataset, open_dataset
from ddpm.evaluation.evaluate import evaluate
from ddpm.model import load
from ddpm.training import load_config, train
from ddpm.training.dry_run import FEWEST, LEAST_SECONDS, WARM_UP, seconds_per_step
from ddpm.training.trainer import Trainer
from experiments.lib import (
    PICTURES,
    RESULTS,
    about,
    add_folders,
    command_line,
    launch,
    load_result,
    parameter_count,
    save_result,
)
from experiments.speed.contestants import Contestant, Diffusers, Lucidrains, Problem

OURS, COLUMNS, SHOWN = "ours", 16, 48
QUIET = {
    "training.preview_every": 0,
    "training.checkpoint_every": 1_000_000,
    "training.keep_checkpoints": 1,
    "training.loggers": [],
}
NOTE, SAMPLES, WEIGHTS = "trained.json", "samples.npz", "average.safetensors"
ANCESTRAL, DDIM = 100, 50  # sampling steps of the peers


@dataclass(frozen=True)
class Match:
    """Conditions for all contestants.

    preset, overrides: our recipe, with the data and the network; reference: the images to compare with; sampling: our
    sampling options that differ from the defaults; num: samples to evaluate; batch: samples per batch of the peers.
    """

    preset: str = "fashion_mnist"
    reference: str = "fashion_mnist:test"
    overrides: dict[str, Any] = field(default_factory=lambda: {"data.labels": False} | QUIET)
    sampling: dict[str, Any] = field(default_factory=dict)
    num: int = 2500
    batch: int = 50

    @property
    def problem(self) -> Problem:
        """Our network and images. Lucidrains' own network gets the same widths."""
        config = load_config(self.preset, self.overrides)
        network, data = config.network, config.data
        mults = tuple(int(mult) for mult in network.channel_mult)
        return Problem(self.preset, network, data.size, data.channels, 1, self.batch, network.channels, mults)


# the other libraries


@dataclass(frozen=True)
class Peer:
    """Recipe of another library.

    title: for tables; batch: images per step; low: images are scaled to [low, 1]; build: makes the contestant;
    average: returns the module with its averaged weights, in place of the trained ones; sample: returns so many images
    in [-1, 1], (N, C, H, W).
    """

    title: str
    batch: int
    low: float
    build: Callable[[Problem, torch.device], Contestant]
    average: Callable[[Any], nn.Module]
    sample: Callable[[Any, int], Tensor]


def diffusers_average(peer: Diffusers) -> nn.Module:
    peer.average.copy_to(peer.network.parameters())
    return peer.network


def diffusers_sample(peer: Diffusers, num: int) -> Tensor:
    """Sample by ancestral steps, as `DDPMPipeline` does.

    After so short a training, DDIM leaves noise in the images with any number of steps, and DPM-Solver++ diverges.
    """
    pipeline = DDPMPipeline(peer.network, peer.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num, num_inference_steps=ANCESTRAL, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def lucidrains(problem: Problem, device: torch.device) -> Lucidrains:
    """Build the `Trainer` with the learning rate of its README."""
    peer = Lucidrains(problem, device)
    for group in peer.optimizer.param_groups:
        group["lr"] = 8e-5
    return peer


def lucidrains_average(peer: Lucidrains) -> nn.Module:
    peer.diffusion.load_state_dict(peer.average.ema_model.state_dict())
    return peer.diffusion


def lucidrains_sample(peer: Lucidrains, num: int) -> Tensor:
    """Sample by DDIM, the library's choice below 1,000 steps. All 1,000 ancestral steps give no better images."""
    peer.diffusion.sampling_timesteps, peer.diffusion.is_ddim_sampling = DDIM, True
    return peer.diffusion.sample(batch_size=num).cpu() * 2 - 1


PEERS = {
    "diffusers": Peer(
        "Diffusers, train_unconditional.py",
        16,
        -1.0,
        Diffusers,  # with a network of the same shape as ours
        diffusers_average,
        diffusers_sample,
    ),
    "lucidrains": Peer(
        "denoising-diffusion-pytorch, Trainer",
        64,  # the library accumulates two batches of 32; one batch of 64 is equivalent and faster
        0.0,
        lucidrains,
        lucidrains_average,
        lucidrains_sample,
    ),
}
TITLES = {OURS: "ddpm, fashion_mnist unconditional"} | {name: peer.title for name, peer in PEERS.items()}


def train_peer(name: str, match: Match, seconds: float, out: Path) -> dict[str, Any]:
    """Train a peer for so many seconds and write its averaged weights to the folder `out`; return facts about it."""
    peer, device = PEERS[name], default_device()
    dataset = open_dataset(load_config(match.preset, match.overrides).data)
    problem = replace(match.problem, training_batch=peer.batch)
    steps = max(2, round(seconds / peer_seconds_per_step(prepare(peer, problem, dataset, device))))
    torch.manual_seed(0)
    contestant = prepare(peer, problem, dataset, device)
    schedule = learning_rate_schedule(contestant, steps)
    began = time.monotonic()
    for _ in range(steps):
        contestant.train()
        if schedule is not None:
            schedule.step()
    taken = time.monotonic() - began
    weights = peer.average(contestant).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, out / WEIGHTS)
    size = parameter_count(contestant.network)
    return {"steps": steps, "batch_size": peer.batch, "seconds": taken, "parameters": size}


def prepare(peer: Peer, problem: Problem, dataset: ImageDataset, device: torch.device) -> Any:
    """Contestant that trains on `dataset`."""
    contestant: Any = peer.build(problem, device)
    contestant.batches = endless_batches(dataset, peer.batch, peer.low)
    return contestant


def endless_batches(dataset: ImageDataset, size: int, low: float) -> Iterator[list[Tensor]]:
    """Yield shuffled batches of images in [low, 1] forever, each image mirrored with probability 1/2."""
    while True:
        for rows in torch.randperm(len(dataset)).split(size):
            images = dataset.batch(rows)[0]
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            if len(rows) == size:
                yield [torch.where(mirrored, images.flip(-1), images) / 255 * (1 - low) + low]


def learning_rate_schedule(contestant: Contestant, steps: int) -> LRScheduler | None:
    """Half cosine to 0 after 500 warm-up steps, as in Diffusers' script; None for lucidrains' constant rate."""
    if not isinstance(contestant, Diffusers):
        return None
    return get_scheduler("cosine", contestant.optimizer, num_warmup_steps=500, num_training_steps=steps)


def peer_seconds_per_step(contestant: Contestant) -> float:
    """Seconds per training step, measured for as long as our own recipe is measured."""
    for _ in range(WARM_UP):
        contestant.train()
    began, steps = time.monotonic(), 0
    while steps < FEWEST or time.monotonic() - began < LEAST_SECONDS:
        contestant.train()
        steps += 1
    return (time.monotonic() - began) / steps


def peer_samples(name: str, match: Match, out: Path) -> Iterator[Tensor]:
    """Yield batches of a peer's samples, float32 (N, C, H, W) in [-1, 1], computed in bf16 like ours."""
    peer, problem, device = PEERS[name], match.problem, default_device()
    contestant = peer.build(problem, device)
    peer.average(contestant).load_state_dict(load_file(out / WEIGHTS))
    contestant.network.eval()
    for first in range(0, match.num, problem.sampling_batch):
        torch.manual_seed(first)
        with torch.autocast(device.type, torch.bfloat16):
            yield peer.sample(contestant, min(problem.sampling_batch, match.num - first)).float()


# the comparison


def train_ours(match: Match, seconds: float, out: Path) -> dict[str, Any]:
    """Train with our recipe for so many seconds; return facts about it. The learning rate decays within the time."""
    config = load_config(match.preset, match.overrides)
    steps = max(2, round(seconds / seconds_per_step(Trainer(config, out))))
    fitted = {"training.steps": steps, "training.warmup": min(config.training.warmup, steps // 10)}
    train(load_config(match.preset, match.overrides | fitted), out / "run", overwrite=True)
    model = load(out / "run")
    known = {"steps": steps, "batch_size": config.training.batch_size, "parameters": parameter_count(model.network)}
    return known | {"seconds": model.provenance["seconds"], "engine": model.provenance["engine"]}


def train_contestant(name: str, minutes: float, runs: Path, match: Match) -> dict[str, Any]:
    """Train one contestant for so many minutes, unless that was done; return the content of trained.json."""
    out = runs / name
    note = out / NOTE
    if note.exists() and (found := json.loads(note.read_text())).get("minutes") == minutes:
        return found
    out.mkdir(parents=True, exist_ok=True)
    for old in (note, out / SAMPLES):  # of another duration, or of a killed call
        old.unlink(missing_ok=True)
    found = train_ours(match, 60 * minutes, out) if name == OURS else train_peer(name, match, 60 * minutes, out)
    found |= {"images": found["steps"] * found["batch_size"], "seconds": round(found["seconds"], 1)}
    found |= {"minutes": minutes, **about(), "threads": torch.get_num_threads()}
    atomic_write(note, json.dumps(found, indent=1).encode())
    return found


def sample(name: str, runs: Path, match: Match) -> Path:
    """Sample from a contestant, unless that was done; return the .npz with `arr_0`, uint8 (N, H, W, C)."""
    path = runs / name / SAMPLES
    if not path.exists():
        if name == OURS:
            sampled = load(runs / name / "run").sample_batches(range(match.num), **match.sampling)
            batches: Iterator[Tensor] = (images for _, images in sampled)
        else:
            batches = peer_samples(name, match, runs / name)
        pixels = to_uint8(torch.cat(list(batches))[: match.num]).permute(0, 2, 3, 1).numpy()
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, arr_0=pixels)
        unfinished.replace(path)
    return path


def evaluate_all(
    runs: Path, match: Match, *, features: str, results: Path = RESULTS, pictures: Path = PICTURES
) -> dict[str, Any]:
    """Evaluate all trained contestants; return the content of time_to_quality.json.

    Raises:
        UserError: no contestant is trained.
    """
    names = [name for name in TITLES if (runs / name / NOTE).exists()]
    if not names:
        raise UserError(f"no contestant is trained in {runs}; use `train` first, or choose another --runs folder")
    before = load_result("time_to_quality", results) or {"rows": []}
    rows = {row["name"]: row for row in before["rows"]}
    result: dict[str, Any] = {**about(), "data": match.reference}
    for name in names:
        samples, metrics = sample(name, runs, match), {}
        for network in (features, "builtin"):
            report = evaluate(str(samples), match.reference, metrics=["fid"], features=network)
            (metric,) = report.metrics
            metrics[metric.key] = metric.value
            result[f"settings of {metric.key}"] = {
                key: value for key, value in report.settings.items() if key not in ("candidate", "images")
            }
        training = json.loads((runs / name / NOTE).read_text())
        rows[name] = {"contestant": TITLES[name], "name": name, "training": training, **metrics}
        result["rows"] = list(rows.values())
        save_result("time_to_quality", result, results)
        first = torch.from_numpy(np.load(samples)["arr_0"][:SHOWN]).permute(0, 3, 1, 2)
        save_grid(to_float(first), pictures / f"time_to_quality_{name}.png", columns=COLUMNS, overwrite=True)
    return result


def run_training(options: argparse.Namespace) -> None:
    """Run the command `train`."""
    print(json.dumps(train_contestant(options.name, options.minutes, options.runs, Match()), indent=1))


def run_evaluation(options: argparse.Namespace) -> None:
    """Run the command `evaluate`."""
    folders = {"results": options.out, "pictures": options.pictures}
    for row in evaluate_all(options.runs, Match(), features=options.features, **folders)["rows"]:
        metrics = {key: value for key, value in row.items() if key in ("fid", "frechet_distance")}
        print(f"{row['contestant']:<40} {metrics}")


def main() -> None:
    """Parse the command line and train or evaluate."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="train one contestant")
    training.add_argument("name", choices=TITLES)
    training.add_argument("--minutes", type=float, default=10.0, help="training time (default: 10)")
    training.set_defaults(action=run_training)
    evaluating = commands.add_parser("evaluate", help="sample, and compare with the test images")
    evaluating.add_argument("--features", default="inception", help="inception (default), or a TorchScript file")
    evaluating.set_defaults(action=run_evaluation)
    for one in (training, evaluating):
        add_folders(one, pictures=one is evaluating, runs="runs/time_to_quality")
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    launch(main)
