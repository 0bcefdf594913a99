"""The feature network that comes with the package: a small classifier of digits, clothes and small photographs.

It needs no download and runs at thousands of images a second. What it measures is not Inception's FID, and is never
called so. Its weights are made by `python -m ddpm.evaluation.builtin`.
"""

import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm.data.sources import open_dataset
from ddpm.evaluation.classifier import SIDE, Classifier, accuracy, prepare, train_classifier

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
    opened = [open_dataset(source, image_size=SIDE, channels=3, labels=True) for source in SOURCES]
    names = [f"{source}/{name}" for source, data in zip(SOURCES, opened, strict=True) for name in data.class_names]
    images, labels = zip(*(data.batch(range(len(data))) for data in opened), strict=True)
    offsets = torch.tensor([0, *(len(data.class_names) for data in opened)]).cumsum(0).tolist()
    shifted = torch.cat([part + offset for part, offset in zip(labels, offsets, strict=False)])
    model = train_classifier(torch.cat(images), shifted, len(names), epochs=EPOCHS, progress="builtin")
    weights = {key: value.contiguous() for key, value in model.half().state_dict().items()}
    save_file(weights, path, metadata={"class_names": json.dumps(names)})
    for source, offset in zip(SOURCES, offsets, strict=False):
        test = open_dataset(f"{source}:test", image_size=SIDE, channels=3, labels=True)
        pixels, classes = test.batch(range(len(test)))
        print(f"{source}: {accuracy(builtin_classifier()[0], pixels, classes + offset):.2%}")


if __name__ == "__main__":
    make()
