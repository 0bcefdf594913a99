"""Coefficients that depend on t alone: worked out once in float64, looked up for a batch of timesteps on any device."""

import torch
from torch import Tensor


class TimestepTable:
    """Columns of float64 coefficients, one row a timestep.

    Calling it with `t`, integers (N,) in 0..T-1, gives one (N, 1, ..., 1) tensor a column in `like`'s dtype, device
    and number of axes. The rounded table is kept on each device, so that a look-up is one gather and never makes an
    accelerator wait for the host.
    """

    def __init__(self, *columns: Tensor):
        self.rows = torch.stack(columns, dim=1)
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, t: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        where = like.device, like.dtype
        if where not in self._placed:
            # Rounded on the CPU: some devices have no float64.
            self._placed[where] = self.rows.to(like.dtype).to(like.device)
        rows = self._placed[where][t.to(like.device)]
        return rows.reshape(len(t), -1, *[1] * (like.ndim - 1)).unbind(1)
