"""The evaluator that training calls: two figures on few images, with the features that come with the package."""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.hardware import process_rank
from ddpm.common.pixels import to_uint8
from ddpm.data import DataConfig, open_dataset
from ddpm.data.datasets import epoch_order, load_image
from ddpm.data.images import BrokenFile
from ddpm.data.sources import find_stored
from ddpm.evaluation.distances import frechet_distance, kernel_distance, moments_of
from ddpm.evaluation.features import FeatureNetwork, load_features
from ddpm.model import Model

SUBSETS, SUBSET_SIZE = 20, 250


def training_evaluator(data: DataConfig, num: int = 500, steps: int = 20) -> Callable[[Model], dict[str, float]]:
    """A function of the model that draws `num` images, always of one seed, and compares them with as many real ones, or
    with all where there are fewer.

    It returns {"kid_builtin", "distance_builtin"}; lower is better, and KID, being unbiased, decides which checkpoint
    is best. Called in every process at once: each draws its share and all get the same figures.

    Raises UserError where the images are neither grey nor colour, before any training.
    """
    if data.channels not in (1, 3):
        raise UserError(f"images of {data.channels} channels cannot be judged in training: --training.evaluate_every 0")
    network = load_features("builtin")
    real: list[np.ndarray] = []  # filled at the first call, so that a run that never evaluates reads nothing twice

    def evaluate(model: Model) -> dict[str, float]:
        if not real:
            real.append(network(real_images(data, num))[0])
        generated = _generated_features(model, network, num, steps)
        kid = kernel_distance(generated, real[0], subsets=SUBSETS, subset_size=SUBSET_SIZE)
        distance = frechet_distance(moments_of([generated]), moments_of(real))
        return {"kid_builtin": kid.mean, "distance_builtin": distance}

    return evaluate


def real_images(data: DataConfig, num: int) -> Tensor:
    """At most `num` images (n, C, H, W), none twice, which would be no unbiased KID; of a set no others are decoded."""
    if data.streaming:
        with contextlib.closing(open_dataset(data)) as stream:
            images, _ = stream.draw(0, range(num))  # of a shorter stream the first ones come again
        return torch.stack(list({image.numpy().tobytes(): image for image in images}.values()))
    stored, found = find_stored(data.source), []
    for index in epoch_order(len(stored), 0, range(len(stored))).tolist():
        with contextlib.suppress(BrokenFile):
            found.append(load_image(stored, data, index)[0])
        if len(found) == num:
            break
    return torch.stack(found)


def _generated_features(model: Model, network: FeatureNetwork, num: int, steps: int) -> np.ndarray:
    rank, processes = process_rank()
    share = range(rank * num // processes, (rank + 1) * num // processes)
    steps = min(steps, model.diffusion.schedule.timesteps)
    parts = [network(to_uint8(images))[0] for _, images in model.sample_batches(share, steps=steps)]
    if processes > 1 and torch.distributed.is_initialized():
        shares: list[list[np.ndarray]] = [[] for _ in range(processes)]
        torch.distributed.all_gather_object(shares, parts)
        parts = [part for share in shares for part in share]
    return np.concatenate(parts)
