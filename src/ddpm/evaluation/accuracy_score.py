"""Classification accuracy score (Ravuri & Vinyals 2019): a classifier that has seen only samples reads real images.

It falls when samples of a class look like another, and when a class's variety is missing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.data.stored import matched_by_number
from ddpm.errors import UserError
from ddpm.evaluation.classifier import accuracy, prepare, train_classifier
from ddpm.evaluation.images import ImageSet
from ddpm.hardware import default_device
from ddpm.pixels import to_uint8

SEEN, EPOCHS = 400_000, 40  # images a classifier is shown, and how often it sees one at most


@dataclass(frozen=True)
class AccuracyScore:
    """Accuracy on real test images after training on samples, and after training on as many real training images.

    `images`: how many each of the two classifiers was trained on.
    """

    generated: float
    real: float
    images: int


def classification_accuracy_score(
    generated: ImageSet, training: ImageSet, test: ImageSet, progress: bool = True
) -> AccuracyScore:
    """Train on `generated`, and on as many of `training` for comparison; read `test`. All three have labels.

    As many of both as the smaller set has: more images alone make a better classifier.
    """
    test_labels, names = test.classes()
    test_images = small(test)
    count = min(len(generated), len(training))
    epochs = max(1, min(EPOCHS, SEEN // count))
    batch_size = min(128, max(16, count // 50))
    scores = []
    for images, title in ((generated, "samples"), (training, "real images")):
        rows = spread(len(images), count)
        classifier = train_classifier(
            small(images, rows),
            matched(images, names)[rows],
            len(names),
            epochs=epochs,
            batch_size=batch_size,
            device=default_device(),
            progress=f"classifier of {title}" if progress else None,
        )
        scores.append(accuracy(classifier, test_images, test_labels))
    of_generated, of_real = scores
    return AccuracyScore(of_generated, of_real, count)


def spread(size: int, num: int) -> Tensor:
    """At most `num` of `size` rows, in order, chosen so that a set sorted by class keeps its mixture."""
    if num >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:num].sort().values


def small(images: ImageSet, rows: Tensor | None = None) -> Tensor:
    """The images as the classifier sees them, uint8 (n, 3, 32, 32), read a chunk at a time."""
    rows = torch.arange(len(images)) if rows is None else rows
    return torch.cat([to_uint8(prepare(images[part.numpy()])) for part in rows.split(images.chunk)])


def matched(images: ImageSet, names: list[str]) -> Tensor:
    """The labels of `images` as numbers of `names`: by name, or by number where one side has numbers for names."""
    labels, own = images.classes()
    if matched_by_number(own, names):
        return labels
    if set(own) - set(names):
        raise UserError(
            f"the classes of {images.title} ({', '.join(own[:5])}, …) are not those of the real set "
            f"({', '.join(names[:5])}, …)"
        )
    return torch.tensor([names.index(name) for name in own])[labels]
