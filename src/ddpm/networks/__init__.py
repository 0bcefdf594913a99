"""Networks: the U-Net and its cost."""

from typing import TYPE_CHECKING

from ddpm.common.lazy import lazy_exports

if TYPE_CHECKING:
    from ddpm.networks.config import NetworkConfig
    from ddpm.networks.inference import count_flops
    from ddpm.networks.unet import UNet

__all__ = ["NetworkConfig", "UNet", "count_flops"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "NetworkConfig": "ddpm.networks.config",
        "UNet": "ddpm.networks.unet",
        "count_flops": "ddpm.networks.inference",
    },
)
