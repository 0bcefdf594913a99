"""Adam, learning-rate schedule, gradient clipping, loss scaling and the moving average of the weights (EMA)."""

import math

import torch
from torch import Tensor, nn

from ddpm.training.config import TrainingConfig


class EMA:
    """Averages the parameters in float32 after every optimizer step; buffers are copied, not averaged.

    Not `torch.optim.swa_utils.AveragedModel`: it reads its update count from the device at every step, so the host
    would wait for a GPU, and its first update replaces the initial weights instead of averaging them.

    Args:
        network: the network to average; the average starts at its parameters.
        decay: weight of the past at each update; Ho et al. use 0.9999.
        warmup: use decay_n = min(decay, (1 + n) / (10 + n)) at update n, so that the initial weights are forgotten
            (TensorFlow's `num_updates`). Ho et al. use no warm-up.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.parameters = {name: p.detach().float().clone() for name, p in network.named_parameters()}
        self.buffers = {name: b.detach().clone() for name, b in network.named_buffers()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the network's present parameters to the average; call it once after each optimizer step."""
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
        """Copy the averaged parameters and the buffers into a network of the same shape."""
        for parameter, average in zip(network.parameters(), self.parameters.values(), strict=True):
            parameter.copy_(average)
        for buffer, value in zip(network.buffers(), self.buffers.values(), strict=True):
            buffer.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages and buffers under the network's names, and the number of updates."""
        return {**self.parameters, **self.buffers, "ema_updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in {**self.parameters, **self.buffers}.items():
            tensor.copy_(state[name])
        self.updates = int(state["ema_updates"])


GROW_AFTER = 2000  # steps without overflow before the loss scale doubles (Micikevicius et al. 2018, section 3.2)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of step 0, 1, …: a linear warm-up, then constant, or a linear or cosine decay to 0 at `steps`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    fraction = (step - config.warmup) / max(1, config.steps - config.warmup)
    factor = {"constant": 1.0, "linear": 1 - fraction, "cosine": (1 + math.cos(math.pi * fraction)) / 2}
    return config.learning_rate * factor[config.lr_schedule]


class Optimizer:
    """Adam on float32 parameters, in one fused pass.

    A step whose loss or gradient is not finite leaves parameters and moments as they were. This is decided on the
    device, so that the host does not wait. With `scales_loss` (fp16) the loss is scaled up before the backward pass,
    and the scale adapts (Micikevicius et al. 2018).

    Args:
        network: the network to train.
        clip: largest norm of the gradient, or None.
        scales_loss: whether the loss needs a scale.
    """

    def __init__(self, network: nn.Module, clip: float | None, scales_loss: bool = False):
        self.named = dict(network.named_parameters())
        self.parameters = list(self.named.values())
        device = self.parameters[0].device
        self.clip, self.scales_loss = clip, scales_loss
        self.scale = torch.tensor(2.0**16 if scales_loss else 1.0, device=device)
        self.good_steps = torch.tensor(0.0, device=device)
        self.adam = torch.optim.Adam(self.parameters, fused=True)

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, learning_rate: float, loss: Tensor) -> Tensor:
        """Clip, and take one step if `loss` and all gradients are finite; return the norm before clipping."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / self.scale
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        factor = 1 / self.scale
        if self.clip is not None:
            factor = factor * (self.clip / (norm + 1e-6)).clamp(max=1)
        if self.clip is not None or self.scales_loss:
            torch._foreach_mul_(gradients, factor)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        # fused Adam skips the step where this is 1
        self.adam.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.adam.step()
        if self.scales_loss:
            self.good_steps = torch.where(finite, self.good_steps + 1, 0)
            grown = torch.where(self.good_steps == GROW_AFTER, self.scale * 2, self.scale)
            self.scale = torch.where(finite, grown, self.scale / 2)
            self.good_steps = self.good_steps % GROW_AFTER
        return norm

    def state_dict(self) -> dict[str, Tensor]:
        """Return Adam's moments and step counts under the parameters' names, and the loss scale if there is one."""
        state = {"loss_scale": self.scale, "loss_scale.good_steps": self.good_steps} if self.scales_loss else {}
        for name, parameter in self.named.items():
            for key, value in self.adam.state[parameter].items():
                state[f"{name}.{key}"] = value
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the moments, in the memory order of their parameters, which the fused kernel expects.

        The loss scale is restored if both runs have one; their precisions may differ.
        """
        if self.scales_loss and "loss_scale" in state:
            self.scale, self.good_steps = (
                state[key].to(self.scale.device) for key in ("loss_scale", "loss_scale.good_steps")
            )
        for name, parameter in self.named.items():
            if f"{name}.step" in state:
                self.adam.state[parameter] = {
                    "step": state[f"{name}.step"].to(parameter.device),
                    "exp_avg": torch.empty_like(parameter).copy_(state[f"{name}.exp_avg"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(state[f"{name}.exp_avg_sq"]),
                }
