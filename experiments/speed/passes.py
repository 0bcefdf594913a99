"""Count how often compiled code passes over the pixels in a residual block.

    python -m experiments.speed.passes

A pass is one image read or written, in the number format of the network. Convolutions are left out: theirs are the
same in any program. PyTorch's compiler says what its kernels read and write. It runs on the CPU here, but fuses as it
does for a GPU. Takes a few minutes, most of it for a C++ compiler. Prints a table; writes passes.json.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor import compile_fx, metrics
from torch._inductor import config as compiler
from torch._inductor.ir import StorageBox
from torch._inductor.scheduler import ExternKernelSchedulerNode

from ddpm.networks import NetworkConfig, norm
from ddpm.networks.unet import ResidualBlock
from ddpm.training.step import COMPILER
from experiments.lib import add_folders, command_line, launch, save_result
from experiments.tables import table

IMAGES, CHANNELS, SIDE, EMBEDDING = 4, 64, 32, 256
# In two blocks. Forward: each of four norms reads for its sums, then reads and writes; two sums read twice and write,
# and the norm after the first one takes its sums there. Backward: the derivative of a norm reads x and dy for its sums,
# then both again, and writes dx; and where a block forked, the gradient of the other path is added.
FORWARD, BACKWARD = 4 * 3 + 2 * 3 - 1, 4 * 5 + 2
NEEDED = {"sample": FORWARD, "train": FORWARD + BACKWARD}


class TwoBlocks(nn.Module):
    """Two residual blocks in a row, so that the end of one can be fused with the start of the next."""

    def __init__(self) -> None:
        super().__init__()
        config = NetworkConfig(channels=CHANNELS, groups=32)
        self.blocks = nn.ModuleList(ResidualBlock(config, CHANNELS, CHANNELS, EMBEDDING, layer) for layer in (0, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding, None)
        return x


@contextlib.contextmanager
def as_for_a_gpu() -> Iterator[None]:
    """Inside, the CPU takes the normalisation of a GPU, and the compiler follows its rules for a GPU."""
    realize = StorageBox.should_realize_on_reuse

    def by_channel(x: Tensor, added: Tensor | None, scale: None, shift: None, *rest: Any) -> Tensor:
        weight, bias, *settings = rest
        return norm._ByChannel.apply(x, added, weight[None], bias[None], *settings)

    def should_realize(self: StorageBox, users: int, **options: Any) -> bool:
        with patch("torch._inductor.ir.is_cpu", lambda _: False):
            return realize(self, users, **options)

    with patch.object(norm, "_plain", by_channel), patch.object(StorageBox, "should_realize_on_reuse", should_realize):
        yield


def count(phase: str, options: dict[str, Any]) -> float:
    """Return the passes of one block, without its convolutions."""
    torch.manual_seed(0)
    x = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(phase == "train")
    metrics.reset()
    torch._dynamo.reset()
    with torch.set_grad_enabled(phase == "train"), compiler.patch(force_disable_caches=True), as_for_a_gpu():
        y = torch.compile(TwoBlocks(), fullgraph=True, dynamic=False, options=options)(x, torch.randn(4, EMBEDDING))
        if phase == "train":
            y.float().sum().backward()
    kernels = [size * 4 for node, size in metrics.nodes_num_elem if not isinstance(node, ExternKernelSchedulerNode)]
    return sum(size / x.nbytes for size in kernels if size > x.nbytes / 2) / 2


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run it."""
    parser = command_line(__doc__)
    add_folders(parser)
    options = parser.parse_args(arguments)
    compile_fx.inductor_metrics_log.setLevel(logging.INFO)  # the compiler counts only if it may say so
    compile_fx.inductor_metrics_log.propagate = False
    rows = [
        {"phase": phase, "needed": NEEDED[phase] / 2, "ours": count(phase, COMPILER), "default": count(phase, {})}
        for phase in NEEDED
    ]
    about = {"torch": torch.__version__, "images": [IMAGES, CHANNELS, SIDE, SIDE]}
    save_result("passes", {"command": "python -m experiments.speed.passes", **about, "rows": rows}, options.out)
    print(table("passes", options.out))


if __name__ == "__main__":
    launch(main)
