"""The exponential moving average of a network's parameters, which is what samples are drawn with."""

import torch
from torch import Tensor, nn


class EMA:
    """Averages the parameters in float32 after every optimizer step; buffers are copied, not averaged.

    Args:
        network: whose parameters are averaged; the average starts at its values.
        decay: weight of the past at each update; Ho et al. use 0.9999.
        warmup: start with a shorter memory, decay_n = min(decay, (1 + n) / (10 + n)) at update n, so that the
            initial weights are forgotten (TensorFlow's `num_updates`). Ho et al. do not.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.parameters = {name: p.detach().float().clone() for name, p in network.named_parameters()}
        self.buffers = {name: b.detach().clone() for name, b in network.named_buffers()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present parameters; call it once after each optimizer step."""
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        new = [p.detach() for p in network.parameters()]
        averages = list(self.parameters.values())
        if any(p.dtype != torch.float32 for p in new):
            new = [p.float() for p in new]
        torch._foreach_lerp_(averages, new, 1 - decay)
        for buffer, value in zip(self.buffers.values(), network.buffers(), strict=True):
            buffer.copy_(value)
        self.updates = n + 1

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Give a network of the same shape the averaged parameters and the copied buffers."""
        for parameter, average in zip(network.parameters(), self.parameters.values(), strict=True):
            parameter.copy_(average)
        for buffer, value in zip(network.buffers(), self.buffers.values(), strict=True):
            buffer.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors: the averages and buffers under the network's names, and the count of updates."""
        return {**self.parameters, **self.buffers, "ema_updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in {**self.parameters, **self.buffers}.items():
            tensor.copy_(state[name])
        self.updates = int(state["ema_updates"])
