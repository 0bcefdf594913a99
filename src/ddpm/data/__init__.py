"""Data: from a SOURCE to batches of images in [-1, 1]."""

from ddpm.data.config import DataConfig
from ddpm.data.dataset import ImageDataset, LazyDataset, MemoryDataset, Report
from ddpm.data.decode import read_image
from ddpm.data.loader import Loader
from ddpm.data.sources import open_dataset
from ddpm.data.stream import StreamDataset

__all__ = [
    "DataConfig",
    "ImageDataset",
    "LazyDataset",
    "Loader",
    "MemoryDataset",
    "Report",
    "StreamDataset",
    "open_dataset",
    "read_image",
]
