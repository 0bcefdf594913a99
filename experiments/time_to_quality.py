"""How good a model of the same few minutes of training is: this package's recipe against those of its peers.

    CUDA_VISIBLE_DEVICES="" python -m experiments.time_to_quality train ours --minutes 10
    CUDA_VISIBLE_DEVICES="" python -m experiments.time_to_quality train diffusers --minutes 10
    python -m experiments.time_to_quality judge

Contestants are `ours`, `diffusers` and `lucidrains`, all unconditional, all on Fashion-MNIST with random flips. A short
measurement turns the time into a number of steps, so that a learning rate that falls is at its end when the time is.
Each leaves RUNS/CONTESTANT/trained.json. `judge` takes those that are there: it draws each one's
images by its own library, compares them with the test images, and writes experiments/results/time_to_quality.json
and docs/pictures/time_to_quality.png.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems import Problem
from ddpm.common.files import atomic_write
from ddpm.common.hardware import default_device
from ddpm.common.pixels import to_float, to_uint8
from ddpm.data import open_dataset
from ddpm.evaluation.evaluate import evaluate
from ddpm.model import load
from ddpm.plotting.plots import plot_images, save_figure
from ddpm.training import load_config, train
from ddpm.training.dry_run import seconds_per_step
from ddpm.training.trainer import Trainer
from experiments import peers
from experiments.record import PICTURES, RESULTS, in_one_line, machine, save_result

OURS, COLUMNS = "ours", 12
TITLES = {OURS: "ddpm, fashion_mnist unconditional"} | {name: peer.title for name, peer in peers.PEERS.items()}
QUIET = {
    "training.preview_every": 0,
    "training.checkpoint_every": 1_000_000,
    "training.keep_checkpoints": 1,
    "training.loggers": [],
}
NOTE, SAMPLES = "trained.json", "samples.npz"


@dataclass(frozen=True)
class Match:
    """What all contestants are given. preset, overrides: our recipe, and with it data and network; sampling: how ours
    draws, where it is not the default; reference: what all are compared with; num: images judged; batch: images drawn
    at once by the peers."""

    preset: str = "fashion_mnist"
    reference: str = "fashion_mnist:test"
    overrides: dict[str, Any] = field(default_factory=lambda: {"data.labels": False} | QUIET)
    sampling: dict[str, Any] = field(default_factory=lambda: {"sampler": "dpm++", "clip": None})
    num: int = 2500
    batch: int = 50

    @property
    def problem(self) -> Problem:
        """Our network and images; lucidrains' own network gets the same widths."""
        config = load_config(self.preset, self.overrides)
        network, data = config.network, config.data
        mults = tuple(int(mult) for mult in network.channel_mult)
        return Problem(self.preset, network, data.size, data.channels, 1, self.batch, network.channels, mults)


def train_ours(match: Match, seconds: float, out: Path) -> dict[str, Any]:
    """Our recipe: the learning rate's fall is fitted to the time, and so is the average, by its warm-up."""
    config = load_config(match.preset, match.overrides)
    steps = max(2, round(seconds / seconds_per_step(Trainer(config, out))))
    fitted = {"training.steps": steps, "training.warmup": min(config.training.warmup, steps // 10)}
    train(load_config(match.preset, match.overrides | fitted), out / "run", overwrite=True)
    model = load(out / "run")
    parameters = sum(p.numel() for p in model.network.parameters())
    known = {"steps": steps, "batch_size": config.training.batch_size, "parameters": parameters}
    return known | {"seconds": model.provenance["seconds"], "engine": model.provenance["engine"]}


def train_contestant(name: str, minutes: float, runs: Path, match: Match) -> dict[str, Any]:
    """Train one contestant for so many minutes, unless that was done; returns what trained.json says."""
    out, command = runs / name, f"python -m experiments.time_to_quality train {name} --minutes {minutes:g}"
    note = out / NOTE
    if note.exists() and (found := json.loads(note.read_text()))["command"] == command:
        return found
    out.mkdir(parents=True, exist_ok=True)
    for old in (note, out / SAMPLES):  # of a training for other minutes, or of one that was cut short
        old.unlink(missing_ok=True)
    if name == OURS:
        found = train_ours(match, 60 * minutes, out)
    else:
        dataset = open_dataset(load_config(match.preset, match.overrides).data)
        found = peers.train(name, match.problem, dataset, 60 * minutes, out, default_device())
    found |= {"images": found["steps"] * found["batch_size"], "seconds": round(found["seconds"], 1)}
    found |= {"command": command, "machine": f"{machine()}, {torch.get_num_threads()} threads"}
    atomic_write(note, json.dumps(found, indent=1).encode())
    return found


def draw(name: str, runs: Path, match: Match) -> Path:
    """A contestant's images, `arr_0` uint8 N,H,W,C; what is there is kept."""
    path = runs / name / SAMPLES
    if not path.exists():
        if name == OURS:
            drawn = load(runs / name / "run").sample_batches(range(match.num), **match.sampling)
            batches: Iterator[Tensor] = (images for _, images in drawn)
        else:
            batches = peers.draw(name, match.problem, match.num, runs / name, default_device())
        pixels = to_uint8(torch.cat(list(batches))[: match.num]).permute(0, 2, 3, 1).numpy()
        beside = path.with_suffix(".part.npz")
        np.savez(beside, arr_0=pixels)
        beside.replace(path)
    return path


def judge(
    runs: Path, match: Match, *, features: str, command: str, results: Path = RESULTS, pictures: Path = PICTURES
) -> dict[str, Any]:
    """Judge all that are trained and write it down; returns what is in the JSON."""
    names = [name for name in TITLES if (runs / name / NOTE).exists()]
    if not names:
        raise SystemExit(f"nothing is trained in {runs}")
    result: dict[str, Any] = {"command": command, "machine": machine(), "data": match.reference, "rows": []}
    for name in names:
        samples, figures = draw(name, runs, match), {}
        for network in (features, "builtin"):
            report = evaluate(str(samples), match.reference, metrics=["fid"], features=network)
            (figure,) = report.figures
            figures[figure.key] = figure.value
            result[f"settings of {figure.key}"] = {
                key: value for key, value in report.settings.items() if key not in ("judged", "images")
            }
        training = json.loads((runs / name / NOTE).read_text())
        result["rows"].append({"contestant": TITLES[name], "name": name, "training": training, **figures})
        save_result("time_to_quality", result, results)
    draw_samples({TITLES[name]: runs / name / SAMPLES for name in names}, pictures)
    return result


def draw_samples(contestants: dict[str, Path], pictures: Path) -> Path:
    """The first images of every contestant, a row each, none of them chosen."""
    first = [torch.from_numpy(np.load(path)["arr_0"][:COLUMNS]).permute(0, 3, 1, 2) for path in contestants.values()]
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = plot_images(to_float(torch.stack(first)), rows=list(contestants))
    return save_figure(drawn, pictures / "time_to_quality.png", overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_quality"), help="where the contestants lie")
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train a contestant")
    training.add_argument("name", choices=TITLES)
    training.add_argument("--minutes", type=float, default=10.0)
    judging = verbs.add_parser("judge", help="draw, and compare with the test images")
    judging.add_argument("--features", default="inception", help="inception, or a TorchScript file")
    options = parser.parse_args()
    with in_one_line("time_to_quality"):
        if options.verb == "train":
            print(json.dumps(train_contestant(options.name, options.minutes, options.runs, Match()), indent=1))
            return
        command = "python -m experiments.time_to_quality judge"
        command += f" --features {Path(options.features).name}" if options.features != "inception" else ""
        result = judge(options.runs, Match(), features=options.features, command=command)
    for row in result["rows"]:
        figures = {key: value for key, value in row.items() if key in ("fid", "frechet_distance")}
        print(f"{row['contestant']:<40} {figures}")


if __name__ == "__main__":
    main()
