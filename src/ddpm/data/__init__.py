"""Data: from a SOURCE to batches of images in [-1, 1]."""

from ddpm.data.config import DataConfig
from ddpm.data.datasets import ImageDataset, LazyDataset, MemoryDataset, Report
from ddpm.data.images import read_image
from ddpm.data.sources import open_dataset
from ddpm.data.stream import StreamDataset

__all__ = [
    "DataConfig",
    "ImageDataset",
    "LazyDataset",
    "MemoryDataset",
    "Report",
    "StreamDataset",
    "open_dataset",
    "read_image",
]
