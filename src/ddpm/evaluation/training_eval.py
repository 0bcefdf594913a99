"""The evaluation that runs during training: two distances on few images, with the built-in features."""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm.common.distributed import gather, my_share
from ddpm.common.errors import UserError
from ddpm.common.pixels import to_uint8
from ddpm.data import DataConfig, open_dataset
from ddpm.data.datasets import epoch_order, load_image
from ddpm.data.images import BrokenFile
from ddpm.data.sources import find_stored
from ddpm.evaluation.distances import frechet_distance, kernel_distance, moments_of
from ddpm.evaluation.features import load_features
from ddpm.model import Model

SUBSETS, SUBSET_SIZE = 20, 250


def training_evaluator(data: DataConfig, num: int = 500, steps: int = 20) -> Callable[[Model], dict[str, float]]:
    """Return a function that samples `num` images of one seed from a model and compares them with real images.

    The function returns {"kid_builtin", "frechet_builtin"}; lower is better. KID is unbiased, so it decides which
    checkpoint is best. Every process must call it: each samples its share and all get the same numbers. It uses `num`
    real images, or all if there are fewer.

    Raises UserError, before any training, if the images are neither grey nor colour.
    """
    if data.channels not in (1, 3):
        raise UserError(
            f"images of {data.channels} channels cannot be evaluated during training: --training.evaluate_every 0"
        )
    network = load_features("builtin")
    real: list[np.ndarray] = []  # filled at the first call, so that a run that never evaluates does not read the data

    def evaluate(model: Model) -> dict[str, float]:
        if not real:
            real.append(network(real_images(data, num))[0])
        batches = model.sample_batches(my_share(num), steps=model.usual_steps(steps))
        generated = np.concatenate(gather(network(to_uint8(images))[0] for _, images in batches))
        kid = kernel_distance(generated, real[0], subsets=SUBSETS, subset_size=SUBSET_SIZE)
        distance = frechet_distance(moments_of([generated]), moments_of(real))
        return {"kid_builtin": kid.mean, "frechet_builtin": distance}

    return evaluate


def real_images(data: DataConfig, num: int) -> Tensor:
    """Return at most `num` different images, uint8 (n, C, H, W); no others are decoded.

    An image that occurs twice would make KID biased.
    """
    if data.streaming:
        with contextlib.closing(open_dataset(data)) as stream:
            images, _ = stream.draw(0, range(num))  # a shorter stream starts again from its beginning
        return torch.stack(list({image.numpy().tobytes(): image for image in images}.values()))
    stored, found = find_stored(data.source), []
    for index in epoch_order(len(stored), 0, range(len(stored))).tolist():
        with contextlib.suppress(BrokenFile):
            found.append(load_image(stored, data, index)[0])
        if len(found) == num:
            break
    return torch.stack(found)
