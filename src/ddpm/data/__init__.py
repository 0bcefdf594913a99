"""Data sets: from a SOURCE to images as tensors."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DataConfig": "ddpm.data.config",
        "ImageDataset": "ddpm.data.datasets",
        "LazyDataset": "ddpm.data.datasets",
        "MemoryDataset": "ddpm.data.datasets",
        "Report": "ddpm.data.datasets",
        "StreamDataset": "ddpm.data.stream",
        "open_dataset": "ddpm.data.sources",
        "read_image": "ddpm.data.images",
    },
)
