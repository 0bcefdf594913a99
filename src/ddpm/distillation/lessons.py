"""What a student learns at each training step: from which timesteps it jumps, where to, and what x_0 takes it there.

A student of N steps samples with DDIM on the trailing grid of N steps. A teacher with a finer grid, of which the
student's grid is a part, shows it the way from x_t to a point x_u of its own grid:

    teacher          t ────▶ s           one DDIM step
    teacher/student          s ────▶ u   one more
    student          t ────────────▶ u   one step, which is to lead to the same x_u

- Progressive distillation (Salimans & Ho 2022, algorithm 2): t is a point of the student's grid, s is halfway to the
  next one, u. The teacher takes both steps. It has 2N steps; the student of one stage is the teacher of the next.
- Multistep consistency distillation (Heek et al. 2024, algorithm 1): t is any point of the teacher's grid, s its next
  one, and the student itself, without gradient, goes on to u, the end of the segment. One segment is Song et al. 2023.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.names import PredictionName
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.timestep_samplers import StratifiedSampler
from ddpm.distillation.config import DistillationConfig
from ddpm.samplers.denoiser import Denoiser
from ddpm.samplers.grid import timestep_grid

# Sampling steps of the first teacher: at 64, DDIM is close to its limit (Salimans & Ho 2022, figure 4), and each
# doubling costs another stage. Consistency distillation ends with more, since its targets cost the same (Heek et al.).
FIRST_STEPS, LAST_STEPS = 64, 1280


@dataclass(frozen=True)
class Lesson:
    """The jumps that a student practises.

    t: int64 (n,), where they start, falling. after, end: int64 (T,), indexed by t: s and u; -1 is the data.
    """

    t: Tensor
    after: Tensor
    end: Tensor

    @classmethod
    def on_grid(cls, schedule: NoiseSchedule, steps: int, parts: int, *, every: bool) -> "Lesson":
        """Return the jumps of a student of `steps` steps, for each of which its teacher takes up to `parts`.

        Args:
            every: start from every point of the teacher's grid; otherwise only from those of the student's.
        """
        grid = [int(t) for t in timestep_grid(schedule, steps * parts, "trailing")]
        after, end = (torch.full((schedule.timesteps,), -1, dtype=torch.int64) for _ in range(2))
        starts = range(0, steps * parts, 1 if every else parts)
        for index in starts:
            after[grid[index]], end[grid[index]] = grid[index + 1], grid[(index // parts + 1) * parts]
        return cls(torch.tensor([grid[index] for index in starts]), after, end)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and u of each t (N,), on its device."""
        return self.after.to(t.device)[t], self.end.to(t.device)[t]


class Curriculum:
    """The lessons of a distillation, as a function of the training step alone; also its timestep sampler.

    Args:
        settings: see `DistillationConfig`.
        schedule: of teacher and student.
        made_for: the steps that the teacher was made for, if it is a student itself: it knows no other timesteps.
        training_steps: of the whole run.
        prediction: of the student, "v" or "x_0".

    Raises UserError if no student of that many steps can be made from this teacher.
    """

    adaptive = False

    def __init__(
        self,
        settings: DistillationConfig,
        schedule: NoiseSchedule,
        made_for: int | None,
        training_steps: int,
        prediction: PredictionName = "v",
    ):
        made_for = made_for or settings.teacher_steps
        check_steps(settings, schedule.timesteps, made_for)
        self.settings, self.schedule, self.training_steps = settings, schedule, training_steps
        self.made_for = made_for
        # The loss is that of v, whatever the student predicts: |v - v̂|² = (SNR + 1)·|x_0 - x̂_0|², and SNR + 1 = 1/σ²
        # is the weighting that Salimans & Ho 2022 found good for few steps (section 4).
        weights = 1 / (1 - schedule.alphas_cumprod) if prediction == "x_0" else torch.ones(schedule.timesteps)
        self.weights = weights.float()
        self.stages = [settings.steps]  # the student's steps in each stage
        if settings.method == "progressive":
            first = made_for or first_steps(settings.steps, schedule.timesteps)
            while 2 * self.stages[0] < first:
                self.stages.insert(0, 2 * self.stages[0])
        if training_steps < 2 ** len(self.stages) - 1:
            raise UserError(
                f"{training_steps} training steps are too few: {' to '.join(map(str, self.stages))} steps are "
                f"{len(self.stages)} stages, each twice as long as the one before"
            )

    def stage(self, step: int) -> tuple[int, int, int]:
        """Return the number of the stage that a training step belongs to, its first step, and the next one's.

        Each stage is twice as long as the one before: the fewer steps, the more there is to learn.
        """
        halves = 2 ** len(self.stages) - 1
        begins = [(2**number - 1) * self.training_steps // halves for number in range(len(self.stages) + 1)]
        number = max(number for number in range(len(self.stages)) if begins[number] <= step)
        return number, begins[number], begins[number + 1]

    def student_steps(self, step: int) -> int:
        """Return the sampling steps of the student at a training step."""
        return self.stages[self.stage(step)[0]]

    def lesson(self, step: int) -> Lesson:
        """Return the lesson of a training step."""
        if self.settings.method == "progressive":
            return self._lesson(self.student_steps(step), 2, False)
        steps = self.settings.steps
        if self.made_for:
            return self._lesson(steps, self.made_for // steps, True)
        # The teacher's steps grow geometrically (Heek et al. 2024, section 3.2): large ones are learnt sooner.
        first, last = (max(1, min(number, self.schedule.timesteps) / steps) for number in (FIRST_STEPS, LAST_STEPS))
        parts = int(first * (last / first) ** min(1.0, step / self.training_steps))
        return self._lesson(steps, parts, True)

    @functools.cache  # noqa: B019 - it lives as long as the run
    def _lesson(self, steps: int, parts: int, every: bool) -> Lesson:
        return Lesson.on_grid(self.schedule, steps, parts, every=every)

    def draw(self, seed: int, step: int, positions: Tensor, global_batch: int) -> tuple[Tensor, Tensor]:
        """Return timesteps of the lesson, spread evenly over the batch, and their weights; see `TimestepSampler`."""
        t = self.lesson(step).t
        index, _ = StratifiedSampler(len(t)).draw(seed, step, positions, global_batch)
        return t[index], self.weights[t[index]]

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Nothing is learnt from the losses."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


def first_steps(steps: int, timesteps: int) -> int:
    """Return steps·2^k, at least 2·steps: the largest up to 64, if there are that many timesteps."""
    doubled = 2 * steps
    while 2 * doubled <= min(FIRST_STEPS, timesteps):
        doubled *= 2
    return doubled


def check_steps(settings: DistillationConfig, timesteps: int, made_for: int | None) -> None:
    """Raise UserError, with the numbers that would do, if a teacher cannot have a student of `settings.steps` steps."""
    steps = settings.steps
    if made_for is not None:
        halved = settings.method == "progressive"
        able = [n for n in range(1, made_for) if made_for % n == 0 and (not halved or (made_for // n).bit_count() == 1)]
        if steps not in able:
            known = ", ".join(map(str, able)) or "none: one step is the least"
            raise UserError(f"a teacher of {made_for} steps can have students of {known}, not {steps}")
    able = [n for n in range(1, timesteps // 2 + 1) if timesteps % n == 0]
    if steps not in able:
        below, above = [n for n in able if n < steps][-1:], [n for n in able if n > steps][:1]
        raise UserError(
            f"a student of {steps} steps does not fit {timesteps:,} timesteps, which it has to divide at least in two; "
            f"the nearest that do are {' and '.join(map(str, below + above))}"
        )


@torch.no_grad()
def target(x_t: Tensor, t: Tensor, lesson: Lesson, teacher: Denoiser, follower: Denoiser) -> Tensor:
    """Return the x_0 with which one DDIM step from x_t leads to where `teacher` and then `follower` lead.

    With κ = √ᾱ/√(1-ᾱ), a DDIM step from t to s is x_s/σ_s = x_t/σ_t + (κ_s - κ_t) x̂_0. So two steps with x̂_0 and x̂'_0
    are one step with the mean of both, weighted by κ_s - κ_t and κ_u - κ_s. This is the x̃ of Salimans & Ho 2022,
    algorithm 2, and the inverse DDIM step of Heek et al. 2024, and it stays in the range of the two predictions.

    Args:
        x_t: (N, C, H, W). t: int64 (N,), timesteps of the lesson.
        teacher: takes the step from t to s. follower: takes the step from s to u.
    """
    s, u = lesson.at(t)
    diffusion = teacher.diffusion
    first = teacher(x_t, t)
    alpha_s, sigma_s = diffusion.alpha_sigma(s, x_t)
    x_s = alpha_s * first.x_0 + sigma_s * first.epsilon
    second = follower(x_s, s).x_0
    return torch.lerp(first.x_0, second, second_weight(diffusion, t, s, u, x_t))


def second_weight(diffusion: GaussianDiffusion, t: Tensor, s: Tensor, u: Tensor, like: Tensor) -> Tensor:
    """Return (κ_u - κ_s) / (κ_u - κ_t), (N, 1, 1, 1): the weight of the second prediction; 0 if s = u.

    Written without κ, which is infinite at the data.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s), (alpha_u, sigma_u) = (diffusion.alpha_sigma(x, like) for x in (t, s, u))
    above = (alpha_u * sigma_s - alpha_s * sigma_u) * sigma_t
    below = (alpha_u * sigma_t - alpha_t * sigma_u) * sigma_s
    return torch.where((s == u).reshape(-1, *[1] * (like.ndim - 1)), 0.0, above / below)
