"""Networks that predict the noise: the U-Net, its configuration and its cost."""

from ddpm.networks.config import NetworkConfig
from ddpm.networks.inference import count_flops
from ddpm.networks.unet import UNet

__all__ = ["NetworkConfig", "UNet", "count_flops"]
