"""The feature network that comes with the package: a small classifier of digits, clothes and small photographs.

It needs no download and runs at thousands of images a second. What it measures is not Inception's FID, and is never
called so. Its weights are made by `python -m ddpm.evaluation.builtin`.
"""

import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ddpm.evaluation.accuracy_score import small
from ddpm.evaluation.classifier import Classifier, accuracy, prepare, train_classifier
from ddpm.evaluation.opening import open_images
from ddpm.interop.folder import save_tensors

EPOCHS = 8
WEIGHTS = Path(str(files("ddpm.assets") / "builtin_features.safetensors"))
SOURCES = ("mnist", "fashion_mnist", "cifar10")


def builtin_classifier() -> tuple[Classifier, list[str]]:
    """The classifier and its class names, "mnist/0" to "mnist/9" first."""
    with safe_open(WEIGHTS, "pt") as weights:
        names = json.loads(weights.metadata()["class_names"])
    model = Classifier(len(names))
    model.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})
    return model.eval(), names


@torch.inference_mode()
def read_digits(images: Tensor, batch_size: int = 500) -> Tensor:
    """The digit 0..9 seen in each uint8 image (N, C, H, W), white ink on black as in MNIST."""
    model, names = builtin_classifier()
    digits = [index for index, name in enumerate(names) if name.startswith("mnist/")]
    return torch.cat([model(prepare(chunk))[:, digits].argmax(1) for chunk in images.split(batch_size)])


def make(path: Path = WEIGHTS) -> None:
    """Train the classifier on all SOURCES at once, print its accuracy on their test sets, write it in float16."""
    images, labels, offsets = [], [], []
    names: list[str] = []
    for source in SOURCES:
        pixels, classes, of_source = _labelled(source)
        images.append(pixels)
        labels.append(classes + len(names))
        offsets.append(len(names))
        names += [f"{source}/{name}" for name in of_source]
    model = train_classifier(torch.cat(images), torch.cat(labels), len(names), epochs=EPOCHS, progress="builtin")
    weights = {key: value.contiguous() for key, value in model.half().state_dict().items()}
    save_tensors(path, weights, {"class_names": json.dumps(names)})
    for source, offset in zip(SOURCES, offsets, strict=True):
        pixels, classes, _ = _labelled(f"{source}:test")
        print(f"{source}: {accuracy(builtin_classifier()[0], pixels, classes + offset):.2%}")


def _labelled(source: str) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, 3, 32, 32), labels and class names of a whole set."""
    images = open_images(source)
    return small(images), *images.classes()


if __name__ == "__main__":
    make()
