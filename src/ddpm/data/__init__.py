"""Data sets: from a SOURCE to images as tensors."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.data.config import DataConfig as DataConfig
    from ddpm.data.datasets import ImageDataset as ImageDataset
    from ddpm.data.datasets import LazyDataset as LazyDataset
    from ddpm.data.datasets import MemoryDataset as MemoryDataset
    from ddpm.data.datasets import Report as Report
    from ddpm.data.images import read_image as read_image
    from ddpm.data.sources import open_dataset as open_dataset
    from ddpm.data.stream import StreamDataset as StreamDataset

__getattr__, __dir__, __all__ = lazy_exports(__name__)
