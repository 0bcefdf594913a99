"""How often a classifier reads the digit that was asked for: `python -m experiments.digits_read MODEL NAME`.

The reader is the built-in classifier, which never saw a generated image; its own accuracy on MNIST's test images, where
they are at hand, stands beside. Writes experiments/results/digits_read_NAME.json.
"""

import argparse
import time

import torch

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.data.sources import open_dataset
from ddpm.evaluation.classifier import read_digits
from ddpm.model import load
from ddpm.samplers import DEFAULT_SAMPLER
from experiments.record import machine, save_result

GUIDANCE = (1.0, 1.5)


def main(words: list[str] | None = None) -> None:
    """Read the command line, draw, read, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("--num", type=int, default=1000)
    options = parser.parse_args(words)
    model = load(options.model)
    asked = torch.arange(options.num) % 10
    share = {}
    began = time.time()
    for guidance in GUIDANCE:
        images = to_uint8(model.sample(options.num, guidance=guidance))
        share[str(guidance)] = round((read_digits(images) == asked).float().mean().item(), 4)
    result = {
        "command": f"python -m experiments.digits_read {options.model} {options.name} --num {options.num}",
        "machine": machine(),
        "seconds": round(time.time() - began),
        "num": options.num,
        "sampler": f"{DEFAULT_SAMPLER}, 20 steps, seed 0",
        "weights": model.weights_hash,
        "read_as_asked_by_guidance": share,
        "reader_on_mnist_test": reader_accuracy(),
        "training": {key: model.provenance.get(key) for key in ("steps", "images", "seconds", "engine")},
    }
    print(save_result(f"digits_read_{options.name}", result))


def reader_accuracy() -> float | None:
    """Of the classifier on MNIST's test images; None where they are not at hand."""
    try:
        test = open_dataset("mnist:test", image_size=28, channels=1, labels=True)
    except UserError:
        return None
    images, labels = test.batch(range(len(test)))
    return round((read_digits(images) == labels).float().mean().item(), 4)


if __name__ == "__main__":
    main()
