"""What FID says of real images: the floor under every figure, and the proof that the pipeline is the standard one.

    python -m experiments.real_against_real MOMENTS.npz [--features inception]

Needs $DDPM_DATA with CIFAR-10 and the TorchScript Inception, and ready moments (mu, sigma, n) of CIFAR-10's 50,000
training images. Writes experiments/results/real_against_real.json. About 15 minutes on two cores; run again after a
kill, it goes on.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from tqdm import tqdm

from ddpm.evaluation.distances import Moments, frechet_distance
from ddpm.evaluation.evaluate import evaluate
from ddpm.evaluation.features import TORCHSCRIPT_FILE, extract, load_features
from ddpm.evaluation.images import DatasetImages
from ddpm.evaluation.sources import open_images
from experiments.record import machine, save_result

FIRST = 1000


class FirstImages(DatasetImages):
    """The first images of a set, in its own order."""

    def __init__(self, images: DatasetImages, num: int):
        super().__init__(images.dataset, f"{images.title}[:{num}]")
        self.order, self.fingerprint = self.order[:num], f"{self.fingerprint}[:{num}]"


def bare_moments(images: DatasetImages, script: Path) -> Moments:
    """torch-fidelity's resize and the bare TorchScript file, a plain loop with nothing of ours in it."""
    network = torch.jit.load(script).eval()
    features = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(images), 50), desc="bare"):
            x = images[start : start + 50].float()
            x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
            features.append(network((x - 128) / 128).numpy())
    stacked = np.concatenate(features).astype(np.float64)
    return Moments(stacked.mean(0), np.cov(stacked, rowvar=False), len(stacked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("moments", help="mu, sigma and n of CIFAR-10's training images")
    parser.add_argument("--features", default="inception")
    options = parser.parse_args()

    network = load_features(options.features)
    report = evaluate(open_images("cifar10:test"), options.moments, metrics=["fid"], features=network)
    print(report.table())
    first = FirstImages(open_images("cifar10"), FIRST)
    ours = extract(first, network)
    script = Path(os.environ["DDPM_DATA"], "inception", TORCHSCRIPT_FILE)
    bare = bare_moments(first, script)
    agreement = frechet_distance(ours.moments(), bare)
    print(f"the first {FIRST:,} training images, twice: FID {agreement:.6f}")

    settings = {**report.as_dict()["settings"], "reference": "ready moments of CIFAR-10's training images"}
    words = f"{Path(options.moments).name} --features {Path(options.features).name}"
    result = {
        "command": f"python -m experiments.real_against_real {words}",
        "first_images_twice": {"n": FIRST, "fid": agreement},
        "test_against_train": {**report.as_dict(), "settings": settings},
        "machine": machine(),
    }
    print(save_result("real_against_real", result))


if __name__ == "__main__":
    main()
