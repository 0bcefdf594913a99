"""What a distillation teaches, and with what, against the papers' steps written out with the networks themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from distillation_cases import TIMESTEPS, tiny_model
from pydantic import ValidationError
from torch import Tensor

from ddpm.diffusion.config import DiffusionConfig
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.distillation.config import DistillationConfig
from ddpm.distillation.distiller import Distiller, student_config
from ddpm.model import Model
from ddpm.networks import UNet
from ddpm.training.trainer import Trainer

PLAIN = {"training.precision": "fp32", "training.loggers": [], "training.steps": 14, "training.ema_warmup": True}
NULL = 3
GUIDANCE = 2.5
ALPHA_BAR = (1 - torch.linspace(1e-3, 0.2, TIMESTEPS, dtype=torch.float64)).cumprod(0).tolist()


@pytest.fixture
def data(tmp_path) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (9, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images, np.arange(9) % 3)
    return tmp_path / "data.npz"


def shuffled(network: UNet, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15)


def levels(t: int) -> tuple[float, float]:
    """√ᾱ and √(1-ᾱ) of one t; of the data for -1."""
    return (1.0, 0.0) if t < 0 else (ALPHA_BAR[t] ** 0.5, (1 - ALPHA_BAR[t]) ** 0.5)


def predicted(network, prediction: str, guidance: float, clip: bool):
    """(x_t, t, label) of one image -> x_0, with guidance, and clipped or not."""

    def x_0(x_t: Tensor, t: int, label: int) -> Tensor:
        def output(one: int) -> Tensor:
            return network(x_t[None], torch.tensor([float(t)]), torch.tensor([one]))[0]

        alpha, sigma = levels(t)
        found = output(label)
        if guidance != 1:
            found = output(NULL) + guidance * (found - output(NULL))
        found = (x_t - sigma * found) / alpha if prediction == "epsilon" else alpha * x_t - sigma * found
        return found.clamp(-1, 1) if clip else found

    return x_0


def reference(x_t: Tensor, t: int, s: int, u: int, label: int, teacher, follower) -> Tensor:
    """The x_0 whose one DDIM step from t to u ends where the step to s of `teacher` and to u of `follower` ends."""

    def step(x: Tensor, x_0: Tensor, start: int, end: int) -> Tensor:
        (alpha, sigma), (alpha_end, sigma_end) = levels(start), levels(end)
        return alpha_end * x_0 + sigma_end * (x - alpha * x_0) / sigma

    x = step(x_t, teacher(x_t, t, label), t, s)
    if s != u:
        x = step(x, follower(x, s, label), s, u)
    (alpha, sigma), (alpha_u, sigma_u) = levels(t), levels(u)
    return (x - sigma_u / sigma * x_t) / (alpha_u - sigma_u / sigma * alpha)


def check(run: Distiller, jumps: list[tuple[int, int, int]], teacher, follower) -> None:
    """Each image of a batch has its own t and class."""
    x_t = torch.randn(len(jumps), 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 1.5
    labels, t = torch.arange(len(jumps)) % 4, torch.tensor([jump[0] for jump in jumps])
    expected = [
        reference(x, *jump, int(label), teacher, follower)
        for x, jump, label in zip(x_t, jumps, labels, strict=True)
    ]  # fmt: skip
    with torch.no_grad():
        found, noise = run.teach(x_t, t, labels)
    torch.testing.assert_close(found, torch.stack(expected), rtol=2e-3, atol=2e-3)
    pairs = torch.tensor([levels(int(one)) for one in t])
    alpha, sigma = pairs.T.reshape(2, -1, 1, 1, 1)
    torch.testing.assert_close(alpha * found + sigma * noise, x_t, rtol=1e-4, atol=1e-4)


def distiller(model: Model, data: Path, out: Path, **settings) -> Distiller:
    config = student_config(model, DistillationConfig(teacher="mine", **settings), str(data), PLAIN)
    run = Distiller(config, out, model)
    shuffled(run.network, 1)  # it begins as the teacher
    return run


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_first_stage_of_progressive_distillation_is_taught_by_the_guided_teacher(data, tmp_path, prediction):
    """Only predictions of x_0 that follow from ε are clipped."""
    model = tiny_model(classes=3, prediction=prediction)
    run = distiller(model, data, tmp_path / "run", steps=2, guidance=GUIDANCE)
    teacher = predicted(model.network, prediction, GUIDANCE, clip=prediction == "epsilon")
    assert run.curriculum.stages == [8, 4, 2]
    check(run, [(15, 14, 13), (9, 8, 7), (3, 2, 1), (1, 0, -1)], teacher, teacher)


def test_later_stages_are_taught_by_the_student_before_without_guidance_or_limits(data, tmp_path):
    """The guidance is in its weights already; its own weights go on changing without it."""
    run = distiller(tiny_model(classes=3), data, tmp_path / "run", steps=2, guidance=GUIDANCE)
    run.progress.step = 6  # the last stage
    run.teacher = run.stage_teacher()
    student = predicted(run.teacher.network, "v", 1.0, clip=False)
    shuffled(run.network, 2)
    check(run, [(15, 11, 7), (7, 3, -1)], student, student)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_consistency_distillation_goes_on_with_the_student_itself(data, tmp_path, prediction):
    """Algorithm 1 of Heek et al. 2024: a step of the teacher, then the student to the end of the segment."""
    model = tiny_model(classes=3, prediction=prediction)
    settings = {"method": "consistency", "steps": 2, "teacher_steps": 8, "guidance": GUIDANCE}
    run = distiller(model, data, tmp_path / "run", **settings)
    teacher = predicted(model.network, prediction, GUIDANCE, clip=prediction == "epsilon")
    jumps = [(15, 13, 7), (13, 11, 7), (9, 7, 7), (7, 5, -1), (3, 1, -1), (1, -1, -1)]
    check(run, jumps, teacher, predicted(run.network, "v", 1.0, clip=False))


def test_stage_begins_with_the_average_of_the_one_before_as_student_and_teacher(data, tmp_path, monkeypatch):
    """The weights themselves are dropped, and the warm-up of the average begins again."""
    run = distiller(tiny_model(classes=3), data, tmp_path / "run", steps=2)
    seen = []
    monkeypatch.setattr(Trainer, "step", lambda self, batch, stop: seen.append((batch, stop)))
    first = run.teacher
    for average in run.learner.ema.parameters.values():
        average.normal_()
    kept = {name: average.clone() for name, average in run.learner.ema.parameters.items()}
    weights = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    for step in (0, 1, 3):  # within a stage
        run.progress.step, run.learner.ema.updates = step, 5
        run.step("batch", stop=True)
        assert run.teacher is first
        assert run.learner.ema.updates == 5
        assert all(torch.equal(p, weights[name]) for name, p in run.network.named_parameters())
    run.progress.step = 2
    run.step("batch", stop=False)
    assert run.learner.ema.updates == 0
    for network in (run.network, run.teacher.network):
        assert all(torch.equal(p, kept[name]) for name, p in network.named_parameters())
    assert run.teacher.network is not run.network
    assert run.teacher.diffusion.prediction == "v"
    assert (run.teacher.class_names, run.teacher.null_label) == (first.class_names, NULL)
    assert seen == [("batch", True)] * 3 + [("batch", False)]


def test_model_of_a_run_is_the_student_of_the_stage_that_trained_it(data, tmp_path):
    """The weights after the last step of a stage are still those of its students."""
    run = distiller(tiny_model(classes=3), data, tmp_path / "run", steps=2)
    taken = []
    for run.progress.step in range(15):
        model = run.model()
        taken.append(model.student.steps)
    assert taken == [8] * 3 + [4] * 4 + [2] * 8
    assert model.student.sampler == "ddim"


def test_learning_rate_is_that_of_a_run_of_the_stage_alone(data, tmp_path):
    model = tiny_model(classes=3)
    changes = {**PLAIN, "training.learning_rate": 1.0, "training.lr_schedule": "linear", "training.warmup": 2}
    config = student_config(model, DistillationConfig(teacher="mine", steps=2), str(data), changes)
    run = Distiller(config, tmp_path / "run", model)
    rates = [0.5, 1, 0.5, 1, 1, 0.5, 0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]  # stages of 2, 4 and 8 steps
    assert [run.learning_rate(step) for step in range(14)] == pytest.approx(rates)


def teacher_of(config: dict, size=(8, 8), schedule: NoiseSchedule | None = None, **options) -> Model:
    """A teacher that knows how it was trained."""
    tiny = tiny_model()
    network = UNet(tiny.network.config.model_copy(update={"dropout": 0.25}), size, 1, 1, 2)
    diffusion = GaussianDiffusion(schedule or tiny.diffusion.schedule, **options)
    return Model(network, diffusion, image_shape=(1, *size), class_names=["a", "b"], provenance={"config": config})


def test_student_is_configured_as_its_teacher_was():
    """Data as they were prepared, the schedule, and a third of the training; its prediction is v."""
    trained = {
        "data": {"random_flip": True, "fit": "pad", "background": [1, 2, 3], "source": "elsewhere"},
        "training": {"steps": 3001, "batch_size": 12},
    }
    schedule = NoiseSchedule(make_betas("cosine", 48))
    model = teacher_of(trained, (8, 16), schedule, variance="fixed_large")
    config = student_config(model, DistillationConfig(teacher="mine", steps=3), "mine.npz", {"data.labels": False})
    data = config.data
    assert (data.source, data.size, data.channels, data.labels) == ("mine.npz", (8, 16), 1, False)
    assert (data.random_flip, data.fit, data.background) == (True, "pad", (1, 2, 3))
    assert config.diffusion.prediction == "v"
    assert config.diffusion.variance == "fixed_large"
    assert torch.equal(config.diffusion.build().schedule.betas, schedule.betas)
    assert config.network == model.network.config.model_copy(update={"dropout": 0.0})
    training = config.training
    assert (training.steps, training.batch_size, training.checkpoint_every, training.preview_every) == (
        1000, 12, 250, 250
    )  # fmt: skip
    assert (training.preview_steps, training.class_drop) == (3, 0.0)  # the teacher has no null class
    assert (training.learning_rate, training.warmup, training.ema_decay) == (2e-4, 0, 0.999)
    assert training.lr_schedule == "linear"


@pytest.mark.parametrize("steps", [None, 0, "many", 2, 90_000])
def test_student_of_a_teacher_of_any_length_trains_for_a_third_of_it(steps):
    """10,000 steps of 64 images if nobody knows; checkpoints four times, or as usual."""
    model = teacher_of({"training": {"steps": steps, "batch_size": 12}})
    training = student_config(model, DistillationConfig(teacher="mine", steps=4, teacher_steps=8), "digits").training
    expected = {2: (1, 12, 1), 90_000: (30_000, 12, 5000)}.get(steps, (10_000, 64, 2500))
    assert (training.steps, training.batch_size, training.checkpoint_every) == expected


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_student_has_the_linear_schedule_of_its_teacher(zero_terminal_snr):
    words = {"schedule": "linear", "timesteps": 24, "beta_start": 2e-3, "beta_end": 0.3}
    schedule = DiffusionConfig(**words, zero_terminal_snr=zero_terminal_snr, prediction="v").build_schedule()
    model = teacher_of({}, schedule=schedule, prediction="v", variance="learned_range")
    diffusion = student_config(model, DistillationConfig(teacher="mine", steps=4), "digits").diffusion
    assert torch.equal(diffusion.build_schedule().betas, schedule.betas)
    assert diffusion.variance == "fixed_small"


def test_steps_of_a_run_are_taught_at_the_timesteps_of_their_lesson(data, tmp_path):
    """The last step of a stage practises that stage's jumps, and its loss is that of v against what is taught."""
    run = distiller(tiny_model(classes=3), data, tmp_path / "run", steps=2)
    for step, jumps in ((1, {(15, 14, 13), (13, 12, 11)}), (5, {(15, 13, 11)}), (6, {(15, 11, 7)})):
        run.progress.step = step
        lesson = run.curriculum.lesson(step)
        batch = run.batches.at(step)
        assert set(batch.t.tolist()) <= set(lesson.t.tolist())
        assert jumps <= {(t, *(int(one) for one in lesson.at(torch.tensor(t)))) for t in lesson.t.tolist()}
        x_t = run.learner.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
        x_0, noise = run.teach(x_t, batch.t, batch.labels)
        assert (x_0 - batch.x_0).abs().max() > 0.01
        alpha, sigma = torch.tensor([levels(int(t)) for t in batch.t]).T.reshape(2, -1, 1, 1, 1)
        output = run.network.eval()(x_t, batch.t.float(), batch.labels)
        expected = (output - (alpha * noise - sigma * x_0)).square().mean((1, 2, 3))
        found = run.learner.losses(run.network, batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_student_of_a_learned_variance_begins_as_the_mean_half_of_its_teacher(data, tmp_path):
    tiny = tiny_model(prediction="v")
    network = UNet(tiny.network.config, (8, 8), 1, 2, None)
    shuffled(network, 4)
    model = Model(network, GaussianDiffusion(tiny.diffusion.schedule, "v", "learned_range"), image_shape=(1, 8, 8))
    config = student_config(model, DistillationConfig(teacher="mine", steps=2), str(data), PLAIN)
    run = Distiller(config, tmp_path / "run", model)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 15.0])
    torch.testing.assert_close(run.network.eval()(x_t, t, None), network(x_t, t, None)[:, :1])


def test_section_has_its_defaults_and_bounds():
    plain = DistillationConfig(teacher="mine")
    assert (plain.steps, plain.teacher_steps, plain.method, plain.guidance) == (4, None, "progressive", 1.0)
    least = DistillationConfig(teacher="mine", steps=1, teacher_steps=2)
    assert (least.steps, least.teacher_steps) == (1, 2)
    for field, wrong in (("steps", 0), ("teacher_steps", 1), ("method", "other"), ("stepps", 4)):
        with pytest.raises(ValidationError, match=field):
            DistillationConfig(teacher="mine", **{field: wrong})
