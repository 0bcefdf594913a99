"""Helpers of several evaluation tests."""

import numpy as np


def save(path, images, labels=None):
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": labels})
    np.savez(path, **arrays)
    return str(path)
