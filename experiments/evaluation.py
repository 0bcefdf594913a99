"""Check the evaluation itself, and measure what the evaluation guide and the results report besides the models' rows.

    python -m experiments.evaluation likelihood [--num 1000]
    python -m experiments.evaluation real STATISTICS.npz [--features inception]
    python -m experiments.evaluation speed
    python -m experiments.evaluation digits MODEL NAME [--num 1000]

`likelihood`: bits/dim of MNIST's test images by the bundled model and by an untrained network of the same
configuration, given the true classes. Writes bits_per_dim.json, and the bundled model's terms in bits_per_dim.png.
`real`: FID of real images, the lower limit of every other, and a check that the pipeline is the standard one.
STATISTICS.npz holds mu, sigma and n of CIFAR-10's training images. About 15 minutes on two cores. Writes
real_against_real.json.
`speed`: images per second of the standard feature network, by each installed engine. Writes features_speed.json.
`digits`: how often a classifier reads the digit that a sample was conditioned on. The built-in classifier has not seen
generated images; its accuracy on MNIST's test images is recorded too. Writes digits_read_NAME.json.
All but the last need data in $DDPM_DATA: MNIST, CIFAR-10, or the TorchScript Inception network. A killed call is
resumed by the same command.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.data.sources import open_dataset
from ddpm.evaluation.classifier import read_digits
from ddpm.evaluation.distances import Moments, frechet_distance
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.features import BATCH, TORCHSCRIPT_FILE, FeatureNetwork, extract, load_features
from ddpm.evaluation.image_sets import DatasetImages, subset_rows
from ddpm.evaluation.likelihood import Likelihood, evaluate_likelihood, plot_likelihood
from ddpm.evaluation.opening import data_options, open_images
from ddpm.model import Model, load
from ddpm.networks.unet import UNet
from ddpm.samplers import DEFAULT_SAMPLER
from experiments.lib import PICTURES, RESULTS, about, add_folders, command_line, launch, save_result

TIMESTEPS = 20  # per image of the likelihood
FIRST = 1000  # real images that go through both pipelines
BATCHES, TRIES = 6, 3  # of the speed measurement
GUIDANCE = (1.0, 1.5)  # of the sampled digits


# likelihood


def untrained(model: Model) -> Model:
    """The same model with freshly initialised weights."""
    channels, *size = model.image_shape
    classes = None if model.num_classes is None else model.num_classes + (model.null_label is not None)
    torch.manual_seed(0)
    network = UNet(model.network.config, tuple(size), channels, channels, classes)
    return Model(
        network,
        model.diffusion,
        image_shape=model.image_shape,
        class_names=model.class_names,
        null_label=model.null_label,
    )


def likelihood_figures(found: Likelihood) -> dict[str, Any]:
    """Figures of a likelihood for a JSON file, in bits/dim: L_0 is Ho et al.'s distortion, all other terms the rate."""
    return {
        "images": found.images,
        "timesteps_per_image": found.timesteps_per_image,
        "bits_per_dim": found.bits_per_dim,
        "standard_error": found.standard_error,
        "distortion_bits": found.terms[0].bits,
        "rate_bits": found.bits_per_dim - found.terms[0].bits,
        "rmse": found.terms[0].rmse,
    }


def bits_per_dim(
    models: dict[str, Model],
    source: str,
    num: int,
    *,
    timesteps: int = TIMESTEPS,
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Code `num` images of `source` with every model and plot the terms of the last; return the JSON's content."""
    rows = []
    for name, model in models.items():
        images = open_images(source, data_options(model))
        chosen = subset_rows(len(images), num)
        labels = images.labels_in(model.class_names)[chosen] if model.class_names else None
        found = evaluate_likelihood(model, images[chosen.numpy()], labels, budget=len(chosen) * timesteps)
        rows.append({"model": name, "weights": model.weights_hash, **likelihood_figures(found)})
        print(f"{name}: {found.bits_per_dim:.4f} ± {found.standard_error:.4f} bits/dim", flush=True)
    pictures.mkdir(parents=True, exist_ok=True)
    plot_likelihood(found, pictures / "bits_per_dim.png")
    result = {**about(), "data": source, "rows": rows}
    save_result("bits_per_dim", result, results)
    return result


def run_likelihood(options: argparse.Namespace) -> None:
    """Run the command `likelihood`."""
    bundled = load("digits")
    models = {"untrained": untrained(bundled), "bundled": bundled}
    bits_per_dim(models, "mnist:test", options.num, results=options.out, pictures=options.pictures)


# FID of real images


class FirstImages(DatasetImages):
    """First `num` images of a set, in its own order."""

    def __init__(self, images: DatasetImages, num: int):
        super().__init__(images.dataset, f"{images.title}[:{num}]")
        self.order, self.fingerprint = self.order[:num], f"{self.fingerprint}[:{num}]"


def bare_moments(images: DatasetImages, script: Path) -> Moments:
    """Feature statistics by torch-fidelity's resize and the TorchScript network in a plain loop, without our code."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    network = torch.jit.load(script).eval()
    features = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(images), 50), desc="plain loop"):
            x = images[start : start + 50].float()
            x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
            features.append(network((x - 128) / 128).numpy())
    stacked = np.concatenate(features).astype(np.float64)
    return Moments(stacked.mean(0), np.cov(stacked, rowvar=False), len(stacked))


def inception_script() -> Path:
    """TorchScript file of the Inception network in $DDPM_DATA."""
    if "DDPM_DATA" not in os.environ:
        raise UserError(f"DDPM_DATA is not set; set it to a folder with inception/{TORCHSCRIPT_FILE}")
    return Path(os.environ["DDPM_DATA"], "inception", TORCHSCRIPT_FILE)


def run_real(options: argparse.Namespace) -> None:
    """Run the command `real`."""
    script, network = inception_script(), load_features(options.features)
    report = evaluate(open_images("cifar10:test"), options.moments, metrics=["fid"], features=network)
    print(report.table())
    first = FirstImages(open_images("cifar10"), FIRST)
    agreement = frechet_distance(extract(first, network).moments(), bare_moments(first, script))
    print(f"FID between our features and the plain loop's, of the first {FIRST:,} training images: {agreement:.6f}")
    found = report.as_dict()
    settings = {**found["settings"], "reference": "precomputed statistics of CIFAR-10's training images"}
    result = {
        **about(),
        "first_images_twice": {"n": FIRST, "fid": agreement},
        "test_against_train": {**found, "settings": settings},
    }
    print(save_result("real_against_real", result, options.out))


# speed of the features


def images_per_second(network: FeatureNetwork) -> float:
    """Speed from uint8 images in memory to features, including the resize; the best of several tries."""
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    network(images)
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        for _ in range(BATCHES):
            network(images)
        seconds.append(time.perf_counter() - began)
    return BATCH * BATCHES / min(seconds)


def run_speed(options: argparse.Namespace) -> None:
    """Run the command `speed`."""
    path, found = inception_script(), {}
    for hidden in ({}, {"openvino": None}):  # as installed, and as if OpenVINO were not
        with mock.patch.dict(sys.modules, hidden):
            network = load_features(path)
        found[network.engine] = round(images_per_second(network), 1)
        print(network.engine, found[network.engine])
    print(save_result("features_speed", {**about(), "batch": BATCH, "images_per_second": found}, options.out))


# reading digits


def reader_accuracy() -> float | None:
    """Accuracy of the built-in classifier on MNIST's test images, or None if MNIST is not available."""
    try:
        test = open_dataset("mnist:test", image_size=28, channels=1, labels=True)
    except UserError:
        return None
    images, labels = test.batch(range(len(test)))
    return round((read_digits(images) == labels).float().mean().item(), 4)


def run_digits(options: argparse.Namespace) -> None:
    """Run the command `digits`."""
    model, classes = load(options.model), torch.arange(options.num) % 10
    correct = {}
    began = time.monotonic()
    for guidance in GUIDANCE:
        images = to_uint8(model.sample(options.num, guidance=guidance))
        correct[str(guidance)] = round((read_digits(images) == classes).float().mean().item(), 4)
    result = {
        **about(),
        "seconds": round(time.monotonic() - began),
        "num": options.num,
        "sampler": f"{DEFAULT_SAMPLER}, 20 steps, seed 0",
        "weights": model.weights_hash,
        "read_as_asked_by_guidance": correct,
        "reader_on_mnist_test": reader_accuracy(),
        "training": {key: model.provenance.get(key) for key in ("steps", "images", "seconds", "engine")},
    }
    print(save_result(f"digits_read_{options.name}", result, options.out))


def main() -> None:
    """Parse the command line and run the chosen measurement."""
    parser = command_line(__doc__)
    commands = parser.add_subparsers(required=True)
    likelihood = commands.add_parser("likelihood", help="bits/dim of MNIST's test images")
    likelihood.add_argument("--num", type=int, default=1000, help="test images (default: 1000)")
    real = commands.add_parser("real", help="FID of real images")
    real.add_argument("moments", help="an .npz of mu, sigma and n of CIFAR-10's training images")
    real.add_argument("--features", default="inception", help="inception (default), or a TorchScript file")
    speed = commands.add_parser("speed", help="speed of the standard feature network")
    digits = commands.add_parser("digits", help="how often a sampled digit is read as intended")
    digits.add_argument("model", help="digits, or a run or model folder")
    digits.add_argument("name", help="the result is digits_read_NAME.json")
    digits.add_argument("--num", type=int, default=1000, help="samples per guidance (default: 1000)")
    actions = {likelihood: run_likelihood, real: run_real, speed: run_speed, digits: run_digits}
    for one, action in actions.items():
        add_folders(one, pictures=one is likelihood)
        one.set_defaults(action=action)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    launch(main)
