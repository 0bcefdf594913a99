"""Evaluate a trained model for its row in docs/reports/results.md.

    python -m experiments.quality.headline mnist
    python -m experiments.quality.headline cifar10 --reference cifar10_train.npz

NAME is one of `HEADLINES`. Its run directory is RUNS/NAME, or that of the row it shares a model with. The script
samples, then computes FID with the chosen features (`--reference` gives precomputed statistics of the training images),
and with the built-in features the distance, KID, precision, recall and a memorisation audit, and if there are classes
the classification accuracy score. Writes NAME.json and NAME.png, and puts the metrics and the picture into the model
card of the run. Expensive parts are cached, so a killed call is resumed by the same command.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm.common.pixels import save_grid
from ddpm.evaluation.evaluate import Report, evaluate
from ddpm.interop.card import add_metrics, add_samples
from ddpm.model import Model, load
from ddpm.networks import UNet
from ddpm.networks.inference import count_flops
from experiments.lib import (
    PICTURES,
    RESULTS,
    about,
    add_folders,
    command_line,
    launch,
    parameter_count,
    save_result,
)

ROWS, COLUMNS = 6, 10  # of the picture if there are no classes; otherwise a column per class
BUILTIN = ("fid", "kid", "prdc", "drift", "levels", "memorisation")


@dataclass(frozen=True)
class Headline:
    """Row of the results.

    title: what was trained; training: its command; data: the training images, whose `:test` split is held out;
    num: number of samples, which for FID must be at least 2,048; sampling: options that differ from the defaults;
    run: the row that this one shares a model with, if any.
    """

    title: str
    training: str
    data: str
    num: int = 10_000
    sampling: dict[str, Any] = field(default_factory=dict)
    run: str | None = None


# the defaults at the time when these rows were sampled
LOG_SNR = {"sampler": "dpm++", "spacing": "log_snr"}
TRAILING = {"sampler": "dpm++", "spacing": "trailing"}
FLOWERS32 = (
    "ddpm train folder32 --data flowers --data.labels true --network.conditioning add --training.steps 5000 "
    "--out runs/flowers32_muon"
)
CIFAR10_BY_CLASS = "ddpm train cifar10_small --data.labels true --training.steps 3900 --out runs/cifar10"

HEADLINES = {
    "mnist": Headline(
        "MNIST 28×28, by class",
        "ddpm train mnist --out runs/mnist",
        "mnist",
        sampling={"clip": None},
    ),
    "mnist_v": Headline(
        "the same for less time, predicting v (bundled)",
        "ddpm train mnist --diffusion.prediction v --training.steps 5000 --out runs/mnist_v",
        "mnist",
        sampling=TRAILING,
    ),
    "cifar10": Headline("CIFAR-10 32×32, by class", CIFAR10_BY_CLASS, "cifar10", sampling=TRAILING),
    "cifar10_guided": Headline(
        "CIFAR-10 32×32, by class, guided",
        CIFAR10_BY_CLASS,
        "cifar10",
        sampling={"guidance": 1.5} | TRAILING,
        run="cifar10",
    ),
    "cifar10_unguided": Headline(
        "CIFAR-10 32×32, the same asked for no class",
        CIFAR10_BY_CLASS,
        "cifar10",
        sampling={"guidance": 0.0} | TRAILING,
        run="cifar10",
    ),
    "cifar10_muon": Headline(
        "CIFAR-10 32×32, by class, guided, Muon and a small network",
        "ddpm train cifar10_small --data.labels true --network.channels 24 --network.conditioning add "
        "--training.steps 12500 --out runs/cifar10_muon",
        "cifar10",
        sampling={"guidance": 1.5},
    ),
    "cifar10_scaled": Headline(
        "CIFAR-10 32×32, by class, guided, the same with scale and shift, half as long",
        "ddpm train cifar10_small --data.labels true --network.channels 24 --training.steps 6250 "
        "--out runs/cifar10_scaled",
        "cifar10",
        sampling={"guidance": 1.5},
    ),
    "cifar10_decayed": Headline(
        "CIFAR-10 32×32, by class, with weight decay, twice as long, guided in an interval",
        "ddpm train cifar10_small --data.labels true --network.channels 24 --training.steps 12500 "
        "--out runs/cifar10_decayed",
        "cifar10",
        sampling={"guidance": 2.0, "guidance_interval": (0.2, 3.0)},
    ),
    "cifar10_gpu": Headline(
        "CIFAR-10 32×32, the paper's network, on a GPU",
        "ddpm train cifar10_fast --training.steps 1500 --training.learning_rate 8e-4 --training.lr_schedule cosine "
        "--training.ema_decay 0.999 --out runs/cifar10_gpu",
        "cifar10",
        num=50_000,
    ),
    "flowers32": Headline(
        "flowers 32×32, by class",
        "ddpm train folder32 --data flowers --data.labels true --training.steps 3000 --out runs/flowers32",
        "flowers",
        num=2500,
        sampling=TRAILING,
    ),
    "flowers32_muon": Headline(
        "flowers 32×32, by class, the present recipe",
        FLOWERS32,
        "flowers",
        num=2500,
    ),
    "flowers32_muon_guided": Headline(
        "flowers 32×32, by class, the same, guided",
        FLOWERS32,
        "flowers",
        num=2500,
        sampling={"guidance": 1.5},
        run="flowers32_muon",
    ),
    "flowers64": Headline(
        "flowers 64×64, by class",
        "ddpm train folder64 --data flowers --data.labels true --out runs/flowers64",
        "flowers",
        num=2500,
        sampling=LOG_SNR,
    ),
    "emoji32": Headline(
        "emoji 32×32, from scratch",
        "ddpm train experiments/quality/emoji32.yaml --out runs/emoji32",
        "emoji",
        num=2500,
        sampling=TRAILING,
    ),
    "emoji32_tuned": Headline(
        "emoji 32×32, from flowers32",
        "ddpm train experiments/quality/emoji32.yaml --init runs/flowers32 --out runs/emoji32_tuned",
        "emoji",
        num=2500,
        sampling=TRAILING,
    ),
}


def evaluate_row(
    name: str,
    headline: Headline,
    run: Path,
    *,
    features: str = "inception",
    reference: str | None = None,
    steps: int = 20,
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Evaluate the model of a run directory; write NAME.json, the pictures and the card; return the JSON's content."""
    model, began = load(run), time.monotonic()
    sampling = {"steps": steps, "num": headline.num, **headline.sampling}
    prefix = pictures / name
    pictures.mkdir(parents=True, exist_ok=True)
    standard = evaluate(
        model, reference or headline.data, metrics=["fid"], features=features, pictures=prefix, **sampling
    )
    asks_for_classes = bool(model.num_classes) and headline.sampling.get("guidance") != 0
    metrics = BUILTIN + (("cas",) if asks_for_classes else ())
    builtin = evaluate(model, headline.data, metrics=metrics, features="builtin", pictures=prefix, **sampling)
    save_samples(model, prefix.with_suffix(".png"), sampling)
    result = {
        "name": name,
        "title": headline.title,
        "training": {"command": headline.training, **training_of(model)},
        # the seconds of this call, without those of results that were cached
        "evaluation": {**about(), "seconds": round(time.monotonic() - began, 1)},
        "standard": as_json(standard, f"{headline.data} (precomputed statistics)" if reference else headline.data),
        "builtin": as_json(builtin, headline.data),
    }
    save_result(name, result, results)
    if headline.run is None:
        complete_card(run / "model", result, prefix.with_suffix(".png"))
    return result


def training_of(model: Model) -> dict[str, Any]:
    """Training facts that the model folder records, and the size of the network."""
    known = {key: model.provenance.get(key) for key in ("steps", "images", "seconds", "engine", "machine")}
    network = model.network
    size: dict[str, Any] = {"parameters": parameter_count(network)}
    if isinstance(network, UNet):
        size["gflops"] = round(count_flops(network) / 1e9, 3)
    return {key: value for key, value in known.items() if value is not None} | size


def as_json(report: Report, reference: str) -> dict[str, Any]:
    """Report without file names, which only exist on this machine."""
    found = report.as_dict()
    del found["pictures"]
    return found | {"settings": found["settings"] | {"reference": reference}}


def save_samples(model: Model, path: Path, sampling: dict[str, Any]) -> None:
    """Save the first samples of seed 0 as a grid, without choosing any."""
    options = {key: value for key, value in sampling.items() if key != "num"}
    columns = model.num_classes if model.num_classes and model.num_classes > 4 else COLUMNS
    rows = COLUMNS if columns < COLUMNS else ROWS
    save_grid(model.sample(rows * columns, **options), path, columns=columns, overwrite=True)


def complete_card(folder: Path, result: dict[str, Any], picture: Path) -> None:
    """Add the metrics and the samples to the model card."""
    metrics = {**result["builtin"]["metrics"], **result["standard"]["metrics"]}
    add_metrics(folder, {metric["title"]: metric["value"] for metric in metrics.values()})
    settings = result["standard"]["settings"]
    caption = f"The first samples of seed 0, not selected: {settings['steps']} steps of {settings['sampler']}, "
    caption += f"spacing {settings['spacing']}, guidance {settings.get('guidance', 1):g}."
    add_samples(folder, picture, caption)


def main() -> None:
    """Parse the command line, evaluate one model and print its metrics."""
    parser = command_line(__doc__)
    parser.add_argument("name", choices=HEADLINES)
    parser.add_argument("--features", default="inception", help="inception (default), or a TorchScript file")
    parser.add_argument("--reference", help="an .npz of the training images' mu, sigma and n")
    add_folders(parser, pictures=True, runs="runs")
    options = parser.parse_args()
    headline = HEADLINES[options.name]
    run = options.runs / (headline.run or options.name)
    if not run.is_dir():
        raise SystemExit(f"error: there is no run in {run}; train it first: {headline.training}")
    chosen = {"features": options.features, "reference": options.reference}
    result = evaluate_row(options.name, headline, run, **chosen, results=options.out, pictures=options.pictures)
    for part in ("standard", "builtin"):
        for metric in result[part]["metrics"].values():
            print(f"{metric['title']:<45} {metric['value']:.5g}  {metric['note']}")


if __name__ == "__main__":
    launch(main)
