"""How often either side of a comparison holds each class: a distance between mixtures grows with the difference."""

import torch

from ddpm.errors import UserError
from ddpm.evaluation.accuracy_score import matched
from ddpm.evaluation.comparison import Comparison
from ddpm.evaluation.images import DatasetImages, GeneratedImages

TOLD_FROM = 0.1  # total variation: the share of the images that would have to be of another class
SAME_WITHIN = 0.1  # of the larger share of a class


def uneven_classes(c: Comparison) -> str:
    """A note where a model draws its classes in other shares than the reference holds them, else an empty string."""
    drawn, reference = c.generated, c.reference
    if not isinstance(drawn, GeneratedImages) or drawn.labels is None or not isinstance(reference, DatasetImages):
        return ""
    held, names = reference.stored_labels, reference.class_names
    if held is None or names is None:
        return ""
    try:
        of_drawn = matched(drawn, names)
    except UserError:  # other classes than the reference's
        return ""
    ours, theirs = (labels.bincount(minlength=len(names)) / len(labels) for labels in (of_drawn, held))
    apart = (ours - theirs).abs()
    if apart.sum() / 2 <= TOLD_FROM:
        return ""
    others = int((apart > SAME_WITHIN * torch.maximum(ours, theirs)).sum())
    return (
        f"classes are drawn in turn, and the reference holds {others} of {len(names)} in another share: "
        "this figure includes that; --labels draws others"
    )
