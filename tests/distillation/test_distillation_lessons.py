"""The targets of distillation where the exact answer is known: Gaussian data, float64."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.loss import DiffusionLoss
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
from ddpm.distillation.config import DistillationConfig
from ddpm.distillation.lessons import Curriculum, Lesson, target
from ddpm.samplers import Denoiser
from ddpm.samplers.algorithms import ddim

SCHEDULES = {
    "linear": NoiseSchedule(make_betas("linear", 1000)),
    "cosine": NoiseSchedule(make_betas("cosine", 1000)),
    "zero snr": NoiseSchedule(rescale_zero_terminal_snr(make_betas("linear", 1000))),
}
MEAN, DEVIATION = 0.3, 0.2


def signals(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1-ᾱ) of each t (N,), float64 (N, 1, 1, 1), from the scalars of the schedule."""
    pairs = torch.tensor([schedule.alpha_sigma(float(one)) for one in t], dtype=torch.float64)
    return pairs[:, 0].reshape(-1, 1, 1, 1), pairs[:, 1].reshape(-1, 1, 1, 1)


def denoiser(schedule: NoiseSchedule, x_0_of, clip=None) -> Denoiser:
    """A denoiser with v prediction whose x_0 is `x_0_of(x_t, t)`."""

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = signals(schedule, t)
        return torch.where(sigma > 0, (alpha * x_t - x_0_of(x_t, t)) / sigma.clamp(min=1e-30), 0.0)

    return Denoiser(network, GaussianDiffusion(schedule, "v"), clip=clip)


def curved(schedule: NoiseSchedule) -> Denoiser:
    """No exact answer is linear here, so that both steps count."""
    return denoiser(schedule, lambda x_t, t: torch.tanh(x_t * (1 + t.reshape(-1, 1, 1, 1) / 700)) - 0.2)


def shrinkage(schedule: NoiseSchedule, t: float) -> float:
    """k in E[x_0 | x_t] = m + k (x_t - √ᾱ m) for x_0 ~ N(m, s²)."""
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)


def exact(schedule: NoiseSchedule) -> Denoiser:
    """The teacher that knows N(m, s²)."""

    def x_0(x_t: Tensor, t: Tensor) -> Tensor:
        k = torch.tensor([shrinkage(schedule, float(one)) for one in t], dtype=torch.float64).reshape(-1, 1, 1, 1)
        return MEAN + k * (x_t - signals(schedule, t)[0] * MEAN)

    return denoiser(schedule, x_0)


def ddim_factor(schedule: NoiseSchedule, grid: list[int]) -> float:
    """The whole DDIM map is x_u - √ᾱ_u m = factor·(x_t - √ᾱ_t m): the product of one factor per step."""
    factor = 1.0
    for t, s in pairwise(grid):
        (alpha, sigma), (alpha_s, sigma_s) = map(schedule.alpha_sigma, map(float, (t, s)))
        k = shrinkage(schedule, t)
        factor *= alpha_s * k + sigma_s * (1 - alpha * k) / sigma
    return factor


def trailing(steps: int, timesteps: int = 1000) -> list[int]:
    return [round(timesteps - index * timesteps / steps) - 1 for index in range(steps)] + [-1]


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("every", [False, True])
def test_one_step_with_the_target_ends_where_two_steps_of_the_teacher_end(name, every):
    """x̃ is solved for by finite differences of a DDIM step, from the end of the teacher's own two steps."""
    schedule = SCHEDULES[name]
    teacher = curved(schedule)
    lesson = Lesson.on_grid(schedule, 4, 4 if every else 2, every=every)
    for t in lesson.t.tolist():
        s, u = (int(part) for part in lesson.at(torch.tensor(t)))
        x_t = draws(3, t)
        two = [float(t), float(s), float(u)] if s != u else [float(t), float(u)]
        end = ddim(teacher, x_t, two, noise=None)

        def one_step(x_0: Tensor, x_t: Tensor = x_t, t: int = t, u: int = u) -> Tensor:
            student = denoiser(schedule, lambda *_: x_0)
            return ddim(student, x_t, [float(t), float(u)], noise=None)

        zero, h = torch.zeros_like(x_t), 0.5
        slope = (one_step(zero + h) - one_step(zero - h)) / (2 * h)
        solved = (end - one_step(zero)) / slope  # a DDIM step is linear in x_0, so Newton's first step is exact
        found = target(x_t, torch.full((3,), t), lesson, teacher, teacher)
        torch.testing.assert_close(found, solved, rtol=1e-9, atol=1e-9)


def test_target_is_the_formula_of_salimans_and_ho():
    """x̃ = (z_t'' - (σ_t''/σ_t) z_t) / (α_t'' - (σ_t''/σ_t) α_t), algorithm 2."""
    schedule = SCHEDULES["cosine"]
    teacher, lesson = curved(schedule), Lesson.on_grid(SCHEDULES["cosine"], 8, 2, every=False)
    t = lesson.t
    s, u = lesson.at(t)
    (alpha_t, sigma_t), (alpha_s, sigma_s), (alpha_u, sigma_u) = (signals(schedule, part) for part in (t, s, u))
    z_t = draws(len(t))
    x = teacher(z_t, t).x_0
    z_s = alpha_s * x + sigma_s / sigma_t * (z_t - alpha_t * x)
    x = teacher(z_s, s).x_0
    z_u = alpha_u * x + sigma_u / sigma_s * (z_s - alpha_s * x)
    formula = (z_u - sigma_u / sigma_t * z_t) / (alpha_u - sigma_u / sigma_t * alpha_t)
    torch.testing.assert_close(target(z_t, t, lesson, teacher, teacher), formula, rtol=1e-9, atol=1e-9)


def test_target_lies_between_the_two_predictions_so_it_needs_no_clipping():
    schedule = SCHEDULES["linear"]
    teacher = curved(schedule)
    teacher.clip = "static"
    lesson = Lesson.on_grid(schedule, 5, 2, every=False)
    found = target(10 * draws(len(lesson.t)), lesson.t, lesson, teacher, teacher)
    assert found.abs().max() <= 1
    assert found.abs().max() > 0.9


def fitted(lesson: Lesson, t: int, teacher: Denoiser, follower: Denoiser) -> tuple[float, float]:
    """The student that is linear in x_t and has the least squared error to the target: (slope, intercept) of x_0."""
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x_0 = target(x_t, torch.full((9,), t), lesson, teacher, follower)
    columns = torch.stack([x_t.flatten(), torch.ones(9, dtype=torch.float64)], 1)
    slope, intercept = torch.linalg.lstsq(columns, x_0.flatten()).solution.tolist()
    assert torch.allclose(columns @ torch.tensor([slope, intercept], dtype=torch.float64), x_0.flatten(), atol=1e-9)
    return slope, intercept


def linear_student(schedule: NoiseSchedule, lines: dict[int, tuple[float, float]]) -> Denoiser:
    def x_0(x_t: Tensor, t: Tensor) -> Tensor:
        known = [lines.get(int(one), (1.0, 0.0)) for one in t]  # at the data, x_0 = x_t
        slope, intercept = torch.tensor(known, dtype=torch.float64).T.reshape(2, -1, 1, 1, 1)
        return slope * x_t + intercept

    return denoiser(schedule, x_0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_progressive_students_of_gaussian_data_reach_the_teachers_ddim_map_down_to_one_step(name):
    schedule = SCHEDULES[name]
    teacher, steps = exact(schedule), 32
    while steps >= 1:
        lesson = Lesson.on_grid(schedule, steps, 2, every=False)
        teacher = linear_student(schedule, {t: fitted(lesson, t, teacher, teacher) for t in lesson.t.tolist()})
        x_T = draws(5)
        sampled = ddim(teacher, x_T, [float(t) for t in trailing(steps)], noise=None)
        alpha_T, _ = schedule.alpha_sigma(999)
        known = MEAN + ddim_factor(schedule, trailing(64)) * (x_T - alpha_T * MEAN)
        torch.testing.assert_close(sampled, known, rtol=1e-7, atol=1e-7)
        steps //= 2


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_student_of_gaussian_data_reaches_the_teachers_ddim_map(name, steps):
    """From the data upwards, the student's own step from s is known when its step from t is fitted: the fixed point."""
    schedule = SCHEDULES[name]
    lesson, lines = Lesson.on_grid(schedule, steps, 40 // steps, every=True), {}
    for t in reversed(lesson.t.tolist()):
        lines[t] = fitted(lesson, t, exact(schedule), linear_student(schedule, lines))
    sampled = ddim(linear_student(schedule, lines), draws(5), [float(t) for t in trailing(steps)], noise=None)
    alpha_T, _ = schedule.alpha_sigma(999)
    known = MEAN + ddim_factor(schedule, trailing(40)) * (draws(5) - alpha_T * MEAN)
    torch.testing.assert_close(sampled, known, rtol=1e-7, atol=1e-7)


def test_training_loss_is_zero_at_the_exact_map_and_only_there():
    """The loss of a run: of v, in float32, with the target's x_0 and the noise that belongs to it."""
    schedule = SCHEDULES["cosine"]
    diffusion, lesson = GaussianDiffusion(schedule, "v"), Lesson.on_grid(SCHEDULES["cosine"], 4, 2, every=False)
    x_t = draws(4).float()
    teacher = exact(schedule)
    x_0 = target(x_t.double(), lesson.t, lesson, teacher, teacher).float()
    lines = torch.tensor([fitted(lesson, t, teacher, teacher) for t in lesson.t.tolist()])
    exact_x_0 = lines[:, :1, None, None] * x_t + lines[:, 1:, None, None]
    alpha, sigma = (part.float() for part in signals(schedule, lesson.t))
    v = (alpha * x_t - exact_x_0) / sigma
    noise = diffusion.epsilon_from_x_0(x_0, x_t, lesson.t)
    loss = DiffusionLoss(diffusion)
    assert loss(v, x_0, x_t, lesson.t, noise).max() < 1e-10
    torch.testing.assert_close(
        loss(v + 0.1, x_0, x_t, lesson.t, noise), torch.full((4,), 0.01), rtol=1e-3, atol=0
    )  # (SNR + 1) times the squared error of x_0


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_student_that_predicts_x_0_has_the_loss_of_one_that_predicts_v(name):
    """Both written as x̂_0: the weight of a timestep is all that is between them."""
    schedule = SCHEDULES[name]
    curriculum = Curriculum(settings(steps=4), schedule, None, 100, "x_0")
    t, weight = curriculum.draw(0, 99, torch.arange(8), 8)
    x_t, x_0, predicted = draws(8, 1).float(), draws(8, 2).float(), draws(8, 3).float()
    alpha, sigma = (part.float() for part in signals(schedule, t))
    noise, v = (x_t - alpha * x_0) / sigma, (alpha * x_t - predicted) / sigma
    of_x_0 = DiffusionLoss(GaussianDiffusion(schedule, "x_0"))(predicted, x_0, x_t, t, noise)
    of_v = DiffusionLoss(GaussianDiffusion(schedule, "v"))(v, x_0, x_t, t, noise)
    torch.testing.assert_close(of_x_0 * weight, of_v, rtol=1e-4, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 125])
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_lessons_lead_along_the_grid_of_the_student(steps, parts):
    schedule = SCHEDULES["linear"]
    lesson = Lesson.on_grid(schedule, steps, parts, every=True)
    fine, coarse = trailing(steps * parts), trailing(steps)
    assert lesson.t.tolist() == fine[:-1]
    for t, s in pairwise(fine):
        after, end = (int(part) for part in lesson.at(torch.tensor(t)))
        assert after == s
        assert end == max(u for u in coarse if u < t)
    progressive = Lesson.on_grid(schedule, steps, parts, every=False)
    assert progressive.t.tolist() == coarse[:-1]
    assert [int(progressive.at(torch.tensor(t))[1]) for t in coarse[:-1]] == coarse[1:]


def settings(**changes) -> DistillationConfig:
    return DistillationConfig(teacher="mine", **changes)


@pytest.mark.parametrize("training_steps", [15, 64, 1000])
def test_stages_halve_the_steps_and_double_in_length(training_steps):
    curriculum = Curriculum(settings(steps=4), SCHEDULES["linear"], None, training_steps)
    taken = [curriculum.student_steps(step) for step in range(training_steps)]
    assert sorted(taken, reverse=True) == taken
    lengths = [taken.count(steps) for steps in (32, 16, 8, 4)]
    assert sum(lengths) == training_steps
    for short, long in pairwise(lengths):
        assert abs(long - 2 * short) <= 2
    for step in range(training_steps):
        number, first, following = curriculum.stage(step)
        assert first <= step < following
        assert taken[first] == taken[step] == curriculum.stages[number]


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_timesteps_belong_to_the_lesson_and_do_not_depend_on_the_split(method):
    curriculum = Curriculum(settings(steps=2, method=method), SCHEDULES["linear"], None, 200)
    for step in (0, 50, 199):
        whole, weight = curriculum.draw(3, step, torch.arange(16), 16)
        part, _ = curriculum.draw(3, step, torch.arange(4, 9), 16)
        assert torch.equal(whole[4:9], part)
        assert set(whole.tolist()) <= set(curriculum.lesson(step).t.tolist())
        assert weight.eq(1).all()


def test_consistency_begins_with_large_steps_of_the_teacher_and_ends_with_every_timestep():
    curriculum = Curriculum(settings(steps=2, method="consistency"), SCHEDULES["linear"], None, 100)
    counts = [len(curriculum.lesson(step).t) for step in range(101)]
    assert (counts[0], counts[100]) == (64, 1000)
    assert sorted(counts) == counts
    assert math.isclose(counts[50], math.sqrt(64 * 1000), rel_tol=0.02)


@pytest.mark.parametrize(
    ("changes", "made_for", "said"),
    [
        ({"steps": 3}, None, "3 steps does not fit 1,000 timesteps.* are 2 and 4$"),
        ({"steps": 600}, None, "600 steps does not fit 1,000 timesteps.* are 500$"),
        ({"steps": 8}, 4, "a teacher of 4 steps can have students of 1, 2, not 8"),
        ({"steps": 4}, 4, "can have students of 1, 2, not 4"),
        ({"steps": 1}, 1, "can have students of none"),
        ({"steps": 4}, 20, "can have students of 5, 10, not 4"),
        ({"steps": 4, "teacher_steps": 12}, None, "a teacher of 12 steps can have students of 3, 6, not 4"),
    ],
)
def test_steps_that_are_not_possible_are_refused_with_the_nearest_that_are(changes, made_for, said):
    with pytest.raises(UserError, match=said):
        Curriculum(settings(**changes), SCHEDULES["linear"], made_for, 1000)


def test_teacher_steps_choose_the_first_stage():
    curriculum = Curriculum(settings(steps=4, teacher_steps=16), SCHEDULES["linear"], None, 100)
    assert curriculum.stages == [8, 4]
    curriculum = Curriculum(settings(steps=4, teacher_steps=20, method="consistency"), SCHEDULES["linear"], None, 100)
    assert len(curriculum.lesson(0).t) == len(curriculum.lesson(99).t) == 20


def test_consistency_needs_no_halving():
    Curriculum(settings(steps=4, method="consistency"), SCHEDULES["linear"], 20, 1000)


def test_too_few_training_steps_for_the_stages_are_refused():
    with pytest.raises(UserError, match="14 training steps are too few: 32 to 16 to 8 to 4 steps are 4 stages"):
        Curriculum(settings(steps=4), SCHEDULES["linear"], None, 14)
