"""The networks that are compared."""

from dataclasses import dataclass, replace

from ddpm.networks import NetworkConfig


@dataclass(frozen=True)
class Problem:
    """A network, its images and the batches to time it with.

    peer_dim, peer_mults: lucidrains' own network for such images; it cannot be made equal to ours.
    """

    title: str
    config: NetworkConfig
    image_size: tuple[int, int]
    channels: int
    training_batch: int
    sampling_batch: int
    peer_dim: int
    peer_mults: tuple[int, ...]


PROBLEMS = {
    "cifar10": Problem("the paper's CIFAR-10 U-Net", NetworkConfig(dropout=0.1), (32, 32), 3, 16, 16, 64, (1, 2, 4, 8)),
    "small28": Problem(
        "a small 28×28 U-Net (32-64-128, 2 blocks)",
        NetworkConfig(channels=32, channel_mult=[1, 2, 4], attention=[7]),
        (28, 28),
        1,
        128,
        64,
        32,
        (1, 2, 4),
    ),
    "toy": Problem(
        "a toy, to try the benchmark itself",
        NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, dropout=0.1),
        (8, 8),
        1,
        2,
        2,
        8,
        (1, 2),
    ),
}
# batches that fill a data-centre card
PROBLEMS["cifar10_gpu"] = replace(PROBLEMS["cifar10"], training_batch=256, sampling_batch=256)
