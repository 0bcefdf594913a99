"""Networks that predict the noise: the U-Net, its averaged weights, its cost."""

from ddpm.networks.config import NetworkConfig
from ddpm.networks.ema import EMA
from ddpm.networks.flops import count_flops
from ddpm.networks.unet import UNet

__all__ = ["EMA", "NetworkConfig", "UNet", "count_flops"]
