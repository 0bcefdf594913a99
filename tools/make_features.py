"""Train the classifier behind `--features builtin`: half an hour on one core.

DDPM_DATA=FOLDER python tools/make_features.py

FOLDER holds mnist, fashion_mnist and cifar10. Writes src/ddpm/assets/builtin_features.safetensors, as float16, and
prints the accuracy on the three test sets.
"""

import json

import torch
from torch import Tensor

from ddpm.evaluation.classifier import WEIGHTS, accuracy, builtin_classifier, small, train_classifier
from ddpm.evaluation.opening import open_images
from ddpm.interop.storage import save_tensors

SOURCES = ("mnist", "fashion_mnist", "cifar10")
EPOCHS = 8


def main() -> None:
    """Train on all SOURCES at once."""
    images, labels, offsets = [], [], []
    names: list[str] = []
    for source in SOURCES:
        pixels, classes, of_source = labelled(source)
        images.append(pixels)
        labels.append(classes + len(names))
        offsets.append(len(names))
        names += [f"{source}/{name}" for name in of_source]
    model = train_classifier(torch.cat(images), torch.cat(labels), len(names), epochs=EPOCHS, progress="builtin")
    weights = {key: value.contiguous() for key, value in model.half().state_dict().items()}
    save_tensors(WEIGHTS, weights, {"class_names": json.dumps(names)})
    for source, offset in zip(SOURCES, offsets, strict=True):
        pixels, classes, _ = labelled(f"{source}:test")
        print(f"{source}: {accuracy(builtin_classifier()[0], pixels, classes + offset):.2%}")


def labelled(source: str) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (N, 3, 32, 32), labels and class names of a whole set."""
    images = open_images(source)
    return small(images), *images.classes()


if __name__ == "__main__":
    main()
