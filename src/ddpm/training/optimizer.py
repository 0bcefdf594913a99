"""Adam and Muon, learning rate, gradient clipping, loss scaling and the moving average of the weights (EMA)."""

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


NOT_MATRICES = {
    "conv_in",
    "conv_out",
    "time_embedding",
    "time_emb_proj",
    "class_embedding",
}  # which Muon leaves to Adam
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a·x + b·x³ + c·x⁵, chosen by Jordan et al. 2024
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95
MUON_SCALE = 0.4  # twice the root mean square of Adam's updates (0.2, Liu et al. 2025, section 2.2), by measurement
# A weight is the average of its updates over 1/6 of the run at the full rate, however long the run is (Wang & Aitchison
# 2024). Without decay weights grow with the square root of the steps: attention becomes a choice of one pixel, and what
# is added to a kernel's output is lost beside it.
MUON_DECAY = 6.0


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (k, rows, columns) with all singular values near 1 (0.7 to 1.2), by Newton-Schulz iterations.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum whose every update is orthogonalized, for the kernels and linear layers inside a network.

    A kernel (out, in, h, w) is the matrix (out, in·h·w). Matrices of one shape are computed together.

    Args:
        named: the parameters, by name.
        weight_decay: the part of a weight that a step takes away, divided by its learning rate (Liu et al. 2025).
        dtype: in which the products are computed: bf16 is enough, and faster where the hardware has it.
    """

    def __init__(self, named: dict[str, nn.Parameter], weight_decay: float = 0.0, dtype: torch.dtype = torch.float32):
        self.weight_decay, self.dtype = weight_decay, dtype
        self.shapes: dict[torch.Size, list[str]] = {}  # of the matrix -> names
        for name, parameter in named.items():
            self.shapes.setdefault(parameter.flatten(1).shape, []).append(name)
        self.parameters = named
        some = next(iter(named.values()))
        self.momentum = {
            shape: torch.zeros(len(names), *shape, device=some.device) for shape, names in self.shapes.items()
        }

    @torch.no_grad()
    def step(self, learning_rate: float, finite: Tensor) -> None:
        """Take one step, or leave weights and momentum as they are if `finite`, a truth value (), is false."""
        for shape, names in self.shapes.items():
            momentum, parameters = self.momentum[shape], list[Tensor](self.parameters[name] for name in names)
            gradients = torch.stack([p.grad.flatten(1) for p in parameters if p.grad is not None])
            average = momentum.lerp(gradients, 1 - MUON_MOMENTUM)
            torch.where(finite, average, momentum, out=momentum)
            ahead = gradients.lerp(average, MUON_MOMENTUM)  # Nesterov
            rate = MUON_SCALE * math.sqrt(max(shape))
            updates = orthogonalized(ahead.to(self.dtype)).float() * rate
            weights = torch.stack([p.flatten(1) for p in parameters])
            updates = torch.where(finite, (updates + self.weight_decay * weights) * -learning_rate, 0.0)
            torch._foreach_add_(parameters, [u.view(p.shape) for u, p in zip(updates, parameters, strict=True)])

    def state_dict(self) -> dict[str, Tensor]:
        """Return each parameter's momentum as a matrix, under NAME.momentum."""
        return {
            f"{name}.momentum": matrix
            for shape, names in self.shapes.items()
            for name, matrix in zip(names, self.momentum[shape], strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for key, momentum in self.state_dict().items():
            momentum.copy_(state[key])


def muon_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the kernels and matrices inside a U-Net, by name: not its ends, embeddings, biases and norms."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1 and NOT_MATRICES.isdisjoint(name.split("."))
    }


class Optimizer:
    """Adam on float32 parameters, in one fused pass; with `muon`, the inner kernels and matrices are Muon's.

    A step whose loss or gradient is not finite leaves parameters and moments as they were. This is decided on the
    device, so that the host does not wait. With `scales_loss` (fp16) the loss is scaled up before the backward pass,
    and the scale adapts (Micikevicius et al. 2018).

    Args:
        network: the network to train.
        clip: largest norm of the gradient, or None.
        scales_loss: whether the loss needs a scale.
        muon: takes its steps with those of Adam, which leaves its parameters alone.
    """

    def __init__(self, network: nn.Module, clip: float | None, scales_loss: bool = False, muon: Muon | None = None):
        named = dict(network.named_parameters())
        self.parameters = list(named.values())
        device = self.parameters[0].device
        self.clip, self.scales_loss = clip, scales_loss
        self.scale = torch.tensor(2.0**16 if scales_loss else 1.0, device=device)
        self.good_steps = torch.tensor(0.0, device=device)
        self.muon = muon
        self.named = {name: p for name, p in named.items() if muon is None or name not in muon.parameters}
        self.adam = torch.optim.Adam(list(self.named.values()), fused=True)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

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
        if self.muon is not None:
            self.muon.step(learning_rate, finite)
        if self.scales_loss:
            self.good_steps = torch.where(finite, self.good_steps + 1, 0)
            grown = torch.where(self.good_steps == GROW_AFTER, self.scale * 2, self.scale)
            self.scale = torch.where(finite, grown, self.scale / 2)
            self.good_steps = self.good_steps % GROW_AFTER
        return norm

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments and Adam's step counts under the parameters' names, and the loss scale if there is one."""
        state = {"loss_scale": self.scale, "loss_scale.good_steps": self.good_steps} if self.scales_loss else {}
        if self.muon is not None:
            state |= self.muon.state_dict()
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
        if self.muon is not None:
            self.muon.load_state_dict(state)
        for name, parameter in self.named.items():
            if f"{name}.step" in state:
                self.adam.state[parameter] = {
                    "step": state[f"{name}.step"].to(parameter.device),
                    "exp_avg": torch.empty_like(parameter).copy_(state[f"{name}.exp_avg"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(state[f"{name}.exp_avg_sq"]),
                }
