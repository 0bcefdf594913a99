"""Data: from a SOURCE to batches of images in [-1, 1]."""

from ddpm.data.config import DataConfig
from ddpm.data.dataset import ImageDataset, MemoryDataset, Report
from ddpm.data.decode import read_image
from ddpm.data.loader import Loader
from ddpm.data.sources import open_dataset

__all__ = ["DataConfig", "ImageDataset", "Loader", "MemoryDataset", "Report", "open_dataset", "read_image"]
