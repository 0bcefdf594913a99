"""What the tests of data sources share."""

import numpy as np

from ddpm.data import open_dataset


def as_array(dataset) -> np.ndarray:
    """(N, H, W, C)"""
    return dataset.batch(range(len(dataset)))[0].permute(0, 2, 3, 1).numpy()


def opened(source, **options):
    return open_dataset(str(source), **{"image_size": 16, **options})
