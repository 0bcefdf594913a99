"""A small image classifier: it provides the built-in features, and the classification accuracy score trains it.

The built-in features need no download and run at thousands of images per second. Their distance is not Inception's
FID and is never called that. The accuracy score (Ravuri & Vinyals 2019) trains a classifier on samples and tests it on
real images. It falls if samples of one class look like another, or if a class lacks variety.
"""

import json
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from ddpm.common.hardware import default_device
from ddpm.common.pixels import to_uint8
from ddpm.evaluation.image_sets import ImageSet, subset_rows

SIDE = 32  # every image is resized to SIDE x SIDE
FEATURES = 64


def normalise(images: Tensor) -> Tensor:
    """Convert uint8 (N, C, H, W), C 1 or 3, to float32 (N, 3, 32, 32) in [-1, 1]; grey becomes three channels."""
    x = images.float() / 127.5 - 1
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


class Residual(nn.Module):
    """x + f(x), two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Classifier(nn.Module):
    """A network with 114,000 weights. `features` (N, 64) is the input of the last layer, `forward` its output."""

    def __init__(self, num_classes: int):
        super().__init__()

        def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
            conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())

        self.trunk = nn.Sequential(
            convolution(3, 32), Residual(32), convolution(32, FEATURES), Residual(FEATURES), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x.contiguous(memory_format=torch.channels_last)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_classifier(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    epochs: int = 8,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Classifier:
    """Train on uint8 images (N, C, H, W) and their classes (N,), with AdamW and a one-cycle learning rate.

    The only augmentation is a shift by up to two pixels. The same seed gives the same classifier on the same machine.
    `progress` is the title of a progress bar.
    """
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(num_classes).to(device).to(memory_format=torch.channels_last)
    steps = -(-len(images) // batch_size) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    bar = tqdm(total=steps, desc=progress, unit="step", disable=progress is None)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=order).split(batch_size):
            if len(index) == 1:
                continue  # batch normalisation needs two images
            x = _shifted(normalise(images[index]), order).to(device)
            loss = F.cross_entropy(model(x), labels[index].to(device), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            bar.update()
    bar.close()
    return model.eval()


def _shifted(x: Tensor, generator: torch.Generator, reach: int = 2) -> Tensor:
    dy, dx = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    return F.pad(x, (reach,) * 4, mode="replicate")[..., dy : dy + SIDE, dx : dx + SIDE]


@torch.inference_mode()
def predict(model: Classifier, images: Tensor, batch_size: int = 500) -> Tensor:
    """Return the outputs of the last layer (N, classes) for uint8 images (N, C, H, W), on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(normalise(chunk).to(device)).cpu() for chunk in images.split(batch_size)])


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images whose class is predicted correctly."""
    return (predict(model, images).argmax(1) == labels).double().mean().item()


SEEN, EPOCHS = 400_000, 40  # a classifier sees this many images in total, and each at most so often


def classification_accuracy_score(
    generated: ImageSet, training: ImageSet, test: ImageSet, progress: bool = True
) -> tuple[float, float, int]:
    """Train one classifier on `generated` and one on `training`, and classify `test`. All three have labels.

    Both use as many images as the smaller set has, since more images alone make a better classifier.

    Returns: the accuracy of the first and of the second classifier, and the number of images that each was trained on.
    """
    test_labels, names = test.classes()
    test_images = small(test)
    count = min(len(generated), len(training))
    epochs = max(1, min(EPOCHS, SEEN // count))
    batch_size = min(128, max(16, count // 50))
    scores = []
    for images, title in ((generated, "samples"), (training, "real images")):
        rows = subset_rows(len(images), count)
        classifier = train_classifier(
            small(images, rows),
            images.labels_in(names)[rows],
            len(names),
            epochs=epochs,
            batch_size=batch_size,
            device=default_device(),
            progress=f"classifier of {title}" if progress else None,
        )
        scores.append(accuracy(classifier, test_images, test_labels))
    of_generated, of_real = scores
    return of_generated, of_real, count


def small(images: ImageSet, rows: Tensor | None = None) -> Tensor:
    """Return the images as the classifier sees them, uint8 (n, 3, 32, 32), read one chunk at a time."""
    rows = torch.arange(len(images)) if rows is None else rows
    return torch.cat([to_uint8(normalise(images[part.numpy()])) for part in rows.split(images.chunk)])


WEIGHTS = Path(str(files("ddpm.assets") / "builtin_features.safetensors"))


def builtin_classifier() -> tuple[Classifier, list[str]]:
    """Load the classifier and its class names, "mnist/0" to "mnist/9" first."""
    with safe_open(WEIGHTS, "pt") as weights:
        names = json.loads(weights.metadata()["class_names"])
    model = Classifier(len(names))
    model.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})
    return model.eval(), names


def read_digits(images: Tensor) -> Tensor:
    """Return the digit 0..9 in each uint8 image (N, C, H, W), which is white on black as in MNIST."""
    model, names = builtin_classifier()
    digits = [index for index, name in enumerate(names) if name.startswith("mnist/")]
    return predict(model, images)[:, digits].argmax(1)
