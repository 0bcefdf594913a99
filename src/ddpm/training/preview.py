"""Pictures on the way: the same seeds each time, so that progress is visible; drawn by all processes together."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ddpm.data.dataset import ImageDataset
from ddpm.data.stream import StreamDataset
from ddpm.model import Model, blocks
from ddpm.viewing.pictures import save_grid

MEAN_OF = 1024  # images of the data set, at most, whose mean colour stands for all
AT_ONCE = 16  # of them in memory


def draw_preview(model: Model, num: int, steps: int, seed: int, accelerator: Accelerator) -> Tensor | None:
    """Images 0 … num-1 of `seed` (num, C, H, W), every process drawing its share; None but in the first process."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = []
    for number, block in enumerate(blocks(range(num), model.default_batch_size)):
        if number % processes == rank:
            mine += list(model.sample_batches(block, steps=min(steps, model.process.schedule.timesteps), seed=seed))
    parts = gather_object(mine) if processes > 1 else mine
    if not accelerator.is_main_process:
        return None
    return torch.cat([images for _, images in sorted(parts, key=lambda part: part[0][0])])


def save_preview(images: Tensor, folder: Path, step: int) -> None:
    """RUN/samples/NNNNNN.png."""
    save_grid(images, folder / f"{step:06d}.png", overwrite=True)


def channel_means(dataset: ImageDataset) -> Tensor | None:
    """Mean of each channel in [-1, 1], over images spread evenly through the set; None for one that is streamed."""
    if isinstance(dataset, StreamDataset):
        return None
    chosen = range(0, len(dataset), -(-len(dataset) // MEAN_OF))
    channels, height, width = dataset.image_shape
    total = torch.zeros(channels, dtype=torch.int64)
    for start in range(0, len(chosen), AT_ONCE):
        pixels, _ = dataset.batch(chosen[start : start + AT_ONCE])
        total += pixels.sum((0, 2, 3)).cpu()
    return total.double() / (len(chosen) * height * width) / 127.5 - 1


def channel_drift(images: Tensor, means: Tensor) -> dict[str, float]:
    """How far the mean of each channel of the previews lies from the data's: a colour tint shows here first."""
    drift = images.double().mean((0, 2, 3)) - means
    return {f"channel_{index}_drift": round(value, 5) for index, value in enumerate(drift.tolist())}
