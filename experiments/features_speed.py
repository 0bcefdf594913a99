"""How many images a second the standard feature network takes, through each engine that is installed.

    python -m experiments.features_speed

Needs $DDPM_DATA with the TorchScript Inception; a machine with nothing else to do. Writes
experiments/results/features_speed.json.
"""

import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from ddpm.evaluation.features import BATCH, TORCHSCRIPT_FILE, FeatureNetwork, load_features
from experiments.record import machine, save_result

BATCHES = 6


def images_per_second(network: FeatureNetwork) -> float:
    """From uint8 images in memory to features, the resize included; the best of three goes."""
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    network(images)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(BATCHES):
            network(images)
        seconds.append(time.perf_counter() - began)
    return BATCH * BATCHES / min(seconds)


def main() -> None:
    path = Path(os.environ["DDPM_DATA"], "inception", TORCHSCRIPT_FILE)
    found = {}
    for hidden in ({}, {"openvino": None}):  # as installed, and as where OpenVINO is not
        with mock.patch.dict(sys.modules, hidden):
            network = load_features(path)
        found[network.engine] = round(images_per_second(network), 1)
        print(network.engine, found[network.engine])
    command = "python -m experiments.features_speed"
    result = {"command": command, "machine": machine(), "batch": BATCH, "images_per_second": found}
    print(save_result("features_speed", result))


if __name__ == "__main__":
    main()
