"""A network in the formats that it is asked in: converted, compiled or recorded once, and kept."""

import copy
import itertools

import torch
from torch import nn

from ddpm.networks.graph import CudaGraphed


def weights_state(network: nn.Module) -> tuple:
    """Equal for as long as no weight was written to, replaced or moved; what was made from the weights is then good."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


class Copies:
    """A network's copies, one a number format. They are made anew when its weights have changed.

    `compiled` says whether they go through `torch.compile`; on a CUDA card they are recorded as graphs.
    """

    def __init__(self, network: nn.Module):
        self.network, self.compiled = network, False
        self._copies: dict[tuple[torch.dtype, bool], nn.Module] = {}
        self._state: tuple = ()

    @torch.inference_mode(False)  # a copy made inside it could never again be asked outside
    def of(self, dtype: torch.dtype) -> nn.Module:
        """The network with its weights in `dtype`, channels last."""
        state = weights_state(self.network)
        if state != self._state:
            self._copies.clear()
            self._state = state
        key = (dtype, self.compiled)
        if key not in self._copies:
            network: nn.Module = copy.deepcopy(self.network).to(dtype).to(memory_format=torch.channels_last)
            if self.compiled:
                network.compile(dynamic=False)
            on_card = next(network.parameters()).device.type == "cuda"
            self._copies[key] = CudaGraphed(network) if on_card else network
        return self._copies[key]
