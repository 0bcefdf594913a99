"""Going back up: the schedule of jumps with which RePaint and DDNM let the known and the new part settle."""

import math

from torch import Tensor

from ddpm.errors import UserError
from ddpm.process.schedule import NoiseSchedule
from ddpm.samplers.step import Noise


def jump_path(steps: int, length: int, repeats: int) -> list[int]:
    """The positions on a grid of `steps` steps that are visited, from 0 (noise) to `steps` (data).

    After every `length` steps the path goes back up `length` positions, `repeats` - 1 times, before it goes on
    (Lugmayr et al. 2022, algorithm 1 and appendix B). It never jumps up from the data itself.
    """
    if length < 1 or repeats < 1:
        raise UserError(f"jump length and repeats must be at least 1, not {length} and {repeats}")
    last = steps - 1
    left = dict.fromkeys(range(last, length - 1, -length), repeats - 1)
    path, position = [0], 0
    while position < last:
        position += 1
        path.append(position)
        if left.get(position, 0) > 0:
            left[position] -= 1
            for _ in range(length):
                position -= 1
                path.append(position)
    return [*path, steps]


def renoise(schedule: NoiseSchedule, x: Tensor, t: float, t_up: float, noise: Noise) -> Tensor:
    """x_{t_up} ~ q(x_{t_up} | x_t) for t_up > t."""
    kept = schedule.alpha_bar(t_up) / schedule.alpha_bar(t)
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * noise()
