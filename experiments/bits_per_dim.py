"""Bits/dim of MNIST's test images: the bundled model, and a network of the same configuration that learned nothing.

    python -m experiments.bits_per_dim [--num 1000]

Needs $DDPM_DATA with MNIST. The models are told the images' true classes. Writes experiments/results/bits_per_dim.json
and docs/pictures/bits_per_dim.png, the bundled model's terms by timestep and its progressive coding. Run again after a
kill, it goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ddpm.evaluation.images import subset_rows
from ddpm.evaluation.likelihood import evaluate_likelihood, plot_likelihood
from ddpm.evaluation.sources import data_options, open_images
from ddpm.model import Model, load
from ddpm.networks.unet import UNet
from experiments.record import PICTURES, RESULTS, machine, save_result

TIMESTEPS = 20  # an image


def untrained(model: Model) -> Model:
    """The same model with the weights that training begins with."""
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


def bits_per_dim(
    models: dict[str, Model],
    source: str,
    num: int,
    *,
    timesteps: int = TIMESTEPS,
    command: str = "",
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Code `num` images of `source` with every model and draw the last one's terms; returns what is in the JSON."""
    rows = []
    for name, model in models.items():
        images = open_images(source, data_options(model))
        chosen = subset_rows(len(images), num)
        labels = images.labels_in(model.class_names)[chosen] if model.class_names else None
        found = evaluate_likelihood(model, images[chosen.numpy()], labels, budget=len(chosen) * timesteps)
        rows.append(
            {
                "model": name,
                "weights": model.weights_hash,
                "images": found.images,
                "timesteps_per_image": found.timesteps_per_image,
                "bits_per_dim": found.bits_per_dim,
                "standard_error": found.standard_error,
                "distortion_bits": found.terms[0].bits,
                "rate_bits": found.bits_per_dim - found.terms[0].bits,
                "rmse": found.terms[0].rmse,
            }
        )
        print(f"{name}: {found.bits_per_dim:.4f} ± {found.standard_error:.4f} bits/dim", flush=True)
    pictures.mkdir(parents=True, exist_ok=True)
    plot_likelihood(found, pictures / "bits_per_dim.png")
    result = {"command": command, "machine": machine(), "data": source, "rows": rows}
    save_result("bits_per_dim", result, results)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=1000, help="test images")
    options = parser.parse_args()
    bundled = load("digits")
    models = {"untrained": untrained(bundled), "bundled": bundled}
    bits_per_dim(models, "mnist:test", options.num, command=f"python -m experiments.bits_per_dim --num {options.num}")


if __name__ == "__main__":
    main()
