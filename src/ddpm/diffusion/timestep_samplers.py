"""The timestep of each training image, and the importance weight that keeps the loss unbiased.

A timestep depends on (seed, step, the image's position in the global batch), never on how the batch is split over
processes. All tensors here are on the CPU.
"""

from typing import Protocol

import torch
from torch import Tensor

from ddpm.common.names import TimestepSamplerName
from ddpm.common.randomness import derive_seed

HISTORY = 10  # losses kept for each timestep (Nichol & Dhariwal 2021, section 3.3)
UNIFORM_FRACTION = 1e-3  # uniform part of the loss-aware distribution, so that no timestep is ever left out


class TimestepSampler(Protocol):
    """A distribution of timesteps over the global batch; `adaptive` if it depends on the losses of earlier steps."""

    adaptive: bool

    def draw(self, seed: int, step: int, positions: Tensor, global_batch: int) -> tuple[Tensor, Tensor]:
        """Return the timesteps t, int64 (n,), and loss weights, float32 (n,), of positions in 0..global_batch-1."""
        ...

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the unweighted losses (B,) of the timesteps t (B,) of a whole global batch."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must be saved to resume; empty unless adaptive."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resume where `state_dict` was taken."""
        ...


class _Fixed:
    """A sampler that learns nothing from the losses."""

    adaptive = False

    def __init__(self, timesteps: int):
        self.timesteps = timesteps

    def update(self, t: Tensor, losses: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class UniformSampler(_Fixed):
    """t uniform over 0..T-1, independent for each image (Ho et al. 2020, algorithm 1)."""

    def draw(self, seed: int, step: int, positions: Tensor, global_batch: int) -> tuple[Tensor, Tensor]:
        u = _uniform(seed, step, positions)
        return _floor(u * self.timesteps, self.timesteps), torch.ones(len(positions))


class StratifiedSampler(_Fixed):
    """Low-discrepancy: the global batch of B covers the timesteps evenly, one image in each of B equal strata.

    One uniform offset is shared by all strata (Kingma et al. 2021, appendix I.1), and the strata are permuted
    over the positions at every step, so that each image's t alone is uniform.
    """

    def draw(self, seed: int, step: int, positions: Tensor, global_batch: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(seed, "strata", step))
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        strata = torch.randperm(global_batch, generator=generator)[positions]
        u = (strata + offset) / global_batch
        return _floor(u * self.timesteps, self.timesteps), torch.ones(len(positions))


class LossAwareSampler:
    """t in proportion to the root mean square of its last ten losses (Nichol & Dhariwal 2021, eq. 18).

    It makes the gradient of L_vlb less noisy. Uniform until every timestep has been seen ten times. `update` must be
    given the losses of the whole global batch in position order, so that every process keeps the same history.
    """

    adaptive = True

    def __init__(self, timesteps: int):
        self.timesteps = timesteps
        self.history = torch.zeros(timesteps, HISTORY, dtype=torch.float64)
        self.seen = torch.zeros(timesteps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """p_t, float64 (T,)."""
        root_mean_square = self.history.square().mean(1).sqrt()
        if bool((self.seen < HISTORY).any()) or float(root_mean_square.sum()) == 0:
            return torch.full((self.timesteps,), 1 / self.timesteps, dtype=torch.float64)
        aware = root_mean_square / root_mean_square.sum()
        return (1 - UNIFORM_FRACTION) * aware + UNIFORM_FRACTION / self.timesteps

    def draw(self, seed: int, step: int, positions: Tensor, global_batch: int) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        t = torch.searchsorted(p.cumsum(0), _uniform(seed, step, positions), right=True).clamp(max=self.timesteps - 1)
        return t, (1 / (self.timesteps * p[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        for index, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.history[index, self.seen[index] % HISTORY] = loss
            self.seen[index] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": self.history.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.history.copy_(state["history"])
        self.seen.copy_(state["seen"])


TIMESTEP_SAMPLERS: dict[TimestepSamplerName, type[UniformSampler | StratifiedSampler | LossAwareSampler]] = {
    "uniform": UniformSampler,
    "stratified": StratifiedSampler,
    "loss_aware": LossAwareSampler,
}


def _uniform(seed: int, step: int, positions: Tensor) -> Tensor:
    """Return a uniform number in [0, 1) per position, float64."""
    words = [derive_seed(seed, "timestep", step, position) for position in positions.tolist()]
    return torch.tensor([word / 2**63 for word in words], dtype=torch.float64)


def _floor(values: Tensor, timesteps: int) -> Tensor:
    """⌊values⌋ as timesteps; rounding may have carried a value just below T up to T."""
    return values.long().clamp(max=timesteps - 1)
