"""Networks: the U-Net and its cost."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.networks.config import NetworkConfig as NetworkConfig
    from ddpm.networks.inference import count_flops as count_flops
    from ddpm.networks.unet import UNet as UNet

__getattr__, __dir__, __all__ = lazy_exports(__name__)
