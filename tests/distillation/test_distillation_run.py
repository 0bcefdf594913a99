"""Whole distillations, small enough for a test: what they write, resume, refuse, and hand to Diffusers."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distillation_cases import tiny_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import ddpm
from ddpm.cli import run
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.pixels import to_uint8
from ddpm.common.randomness import image_generator
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.distillation import distill
from ddpm.distillation.config import DistillationConfig
from ddpm.distillation.distiller import Distiller, student_config
from ddpm.evaluation.classifier import read_digits
from ddpm.interop.diffusers import Student
from ddpm.model import BUNDLED, Model
from ddpm.networks import UNet
from ddpm.restoration import restore
from ddpm.restoration.operators import Inpainting

STEPS = 14  # of training; the stages of a student of 2 steps begin at 0, 2 and 6
FLAGS = ["--training.steps", STEPS, "--training.batch_size", 4, "--training.precision", "fp32"]
FLAGS += ["--training.preview_every", 0, "--training.checkpoint_every", 1, "--training.keep_checkpoints", 99]
FLAGS += ["--training.loggers", "[]", "--training.learning_rate", 1e-3]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images, np.arange(20) % 3)
    return path


@pytest.fixture
def teacher(tmp_path) -> Path:
    tiny_model(classes=3).save(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """command("distill", …) -> (exit code, output, last line of the errors), in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> tuple[int, str, str]:
        code = run([str(word) for word in words])
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return code, output, errors.splitlines()[-1] if errors else ""

    return command


def tensors(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"{step:06d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def numbers(run: Path) -> list[tuple]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["learning_rate"]) for record in records if "loss" in record]


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_resume_is_exact_within_and_between_stages(command, teacher, data, tmp_path, method):
    words = ["distill", teacher, "--steps", 2, "--method", method, "--guidance", 2, "--data", data, *FLAGS]
    assert command(*words, "--training.log_every", 1, "--out", "whole")[0] == 0
    shutil.rmtree(teacher)  # the run has its own copy
    whole = tmp_path / "whole"
    for stopped in (1, 2, 4, 6, 9):
        again = tmp_path / f"stopped-{stopped}"
        shutil.copytree(whole, again)
        for step in range(stopped + 1, STEPS + 1):
            shutil.rmtree(again / "checkpoints" / f"{step:06d}")
        code, output, error = command("train", "--resume", again)
        assert code == 0, error
        assert f"resuming from step {stopped}" in output
        assert tensors(again, STEPS) == tensors(whole, STEPS)
        assert numbers(again) == numbers(whole)
    assert ("teacher.safetensors" in tensors(whole, STEPS)) == (method == "progressive")


def test_two_processes_teach_the_same_student(command, teacher, data, tmp_path):
    words = ["distill", teacher, "--steps", 2, "--data", data, *FLAGS]
    assert command(*words, "--out", "one")[0] == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        source = str(Path(ddpm.__file__).parents[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "ddpm", *map(str, words), "--out", "two"],
            env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
        )
        for rank in ("0", "1")
    ]
    for process in started:
        process.wait(300)
    one, two = (
        load_file(tmp_path / out / "checkpoints" / f"{STEPS:06d}" / "ema.safetensors") for out in ("one", "two")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)  # Adam's first steps amplify rounding


def test_learning_rate_falls_to_zero_in_each_stage(command, teacher, data, tmp_path):
    command("distill", teacher, "--steps", 2, "--data", data, *FLAGS, "--training.log_every", 1, "--out", "run")
    rates = [rate for _, _, rate in numbers(tmp_path / "run")]
    assert rates[0] == rates[2] == rates[6] == 1e-3
    assert rates[1] == pytest.approx(1e-3 / 2)
    assert rates[5] == pytest.approx(1e-3 / 4)
    assert rates[13] == pytest.approx(1e-3 / 8)


def test_student_is_a_model_folder_that_samples_with_its_own_steps(command, teacher, data, tmp_path):
    code, output, _ = command("distill", teacher, "--steps", 2, "--guidance", 1.5, "--data", data, *FLAGS)
    assert code == 0
    assert output.splitlines()[-1] == "runs/teacher-2"
    student = ddpm.load("runs/teacher-2")
    assert student.student == Student(steps=2, sampler="ddim")
    assert student.diffusion.prediction == "v"
    assert (student.class_names, student.null_label) == (["class 0", "class 1", "class 2"], 3)
    assert student.provenance["guidance"] == 1.5
    assert student.provenance["distilled from"] == f"{teacher} ({ddpm.load(teacher).weights_hash})"
    assert torch.equal(student.sample(3), student.sample(3, sampler="ddim", steps=2, spacing="trailing"))
    for others in ({"steps": 5}, {"sampler": "dpm++sde"}, {"sampler": "ancestral", "steps": 16}, {"guidance": 2.0}):
        assert student.sample(2, **others).shape == (2, 1, 8, 8)
    assert command("sample", "runs/teacher-2", "--num", 3, "--out", "a.npz")[0] == 0
    assert command("sample", "runs/teacher-2", "--num", 3, "--sampler", "ddim", "--steps", 2, "--out", "b.npz")[0] == 0
    assert np.array_equal(np.load("a.npz")["arr_0"], np.load("b.npz")["arr_0"])
    card = Path("runs/teacher-2/model/README.md").read_text()
    assert "It was distilled to sample in 2 steps of ddim" in card
    assert "`DDIMScheduler`" in card
    student.save("copy")
    assert ddpm.load("copy").student == student.student
    assert "student" not in json.loads((teacher / "ddpm.json").read_text())


@pytest.mark.parametrize("prediction", ["v", "x_0"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_diffusers_samples_the_same_images_of_a_student(tmp_path, steps, prediction):
    diffusers = pytest.importorskip("diffusers")
    model = tiny_model(prediction=prediction)
    if prediction == "x_0":
        model.network.conv_out.weight.mul_(10)  # else its images are nearly flat
    model.student = Student(steps=steps)
    model.save(tmp_path / "student")
    mine = ddpm.load(tmp_path / "student").sample(3, precision="fp32")

    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "student")
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = torch.stack([torch.randn(1, 8, 8, generator=image_generator(0, index)) for index in range(3)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            v = pipeline.unet(x, t).sample
            x = scheduler.step(v, t, x, use_clipped_model_output=True).prev_sample
    assert (x - mine).abs().max() < 2 / 255
    assert mine.std() > 0.1


def test_the_bundled_student_draws_in_four_steps_the_digits_that_are_asked_for():
    model = ddpm.load("digits4")
    assert model.student == Student(steps=4, sampler="ddim")
    images = model.sample(200)
    assert torch.equal(images, model.sample(200, sampler="ddim", steps=4))
    read = read_digits(to_uint8(images))
    assert (read == torch.arange(200) % 10).double().mean() >= 0.98


def test_diffusers_draws_the_same_digits_with_the_bundled_student():
    """The loop of the guide."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel.from_pretrained(BUNDLED["digits4"], subfolder="unet", torch_dtype=torch.float32)
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        BUNDLED["digits4"], subfolder="scheduler", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(4)
    x = torch.stack([torch.randn(1, 28, 28, generator=image_generator(seed=0, index=i)) for i in range(10)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(x, t, class_labels=torch.arange(10)).sample
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    assert (x - ddpm.load("digits4").sample(10, precision="fp32")).abs().max() < 2 / 255


def test_both_bundled_models_fit_in_six_megabytes():
    files = [file for folder in BUNDLED.values() for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 6_000_000


@pytest.mark.parametrize("classes", [None, 3])
def test_first_prediction_of_the_student_is_that_of_a_teacher_with_v(data, tmp_path, classes):
    model = tiny_model(classes=classes, prediction="v")
    settings = DistillationConfig(teacher="mine", steps=2)
    config = student_config(model, settings, str(data), {"training.precision": "fp32", "training.loggers": []})
    run = Distiller(config, tmp_path, model)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 15.0])
    labels = None if classes is None else torch.tensor([1, 3])
    torch.testing.assert_close(run.network(x_t, t, labels), model.network(x_t, t, labels))


@pytest.mark.parametrize(
    ("words", "kept"), [({}, True), ({"network.channels": 4}, False), ({"diffusion.prediction": "x_0"}, False)]
)
def test_a_student_with_another_network_or_prediction_begins_from_the_seed(data, tmp_path, words, kept):
    model = tiny_model(classes=3, prediction="v")
    begun = []
    for seed in (0, 0, 1):
        overrides = {"training.loggers": [], "training.seed": seed, **words}
        config = student_config(model, DistillationConfig(teacher="mine", steps=2), str(data), overrides)
        begun.append(Distiller(config, tmp_path, model).network.state_dict())
    first = "conv_in.weight"
    assert all(torch.equal(begun[0][name], begun[1][name]) for name in begun[0])
    assert torch.equal(begun[0][first], begun[2][first]) == kept
    assert len(begun[0][first]) == words.get("network.channels", 8)
    if kept:
        assert all(torch.equal(begun[0][name], tensor) for name, tensor in model.network.state_dict().items())


def test_students_of_a_student_predict_what_it_predicts_and_say_its_guidance(command, teacher, data):
    words = ["--data", data, *FLAGS, "--out"]
    smaller = ["--network.channels", 4, "--diffusion.prediction", "x_0", "--guidance", 1.5]
    assert command("distill", teacher, "--steps", 4, *smaller, *words, "four")[0] == 0
    assert command("distill", "four", "--steps", 2, *words, "two")[0] == 0
    two = ddpm.load("two")
    assert two.diffusion.prediction == "x_0"
    assert two.network.config.channels == 4
    assert two.provenance["guidance"] == 1.5
    assert two.sample(3).shape == (3, 1, 8, 8)


def test_teacher_with_a_learned_variance_has_a_student_without(data, tmp_path):
    tiny = tiny_model()
    network = UNet(tiny.network.config, (8, 8), 1, 2, None)
    process = GaussianDiffusion(tiny.diffusion.schedule, "epsilon", "learned_range")
    model = Model(network, process, image_shape=(1, 8, 8))
    config = student_config(model, DistillationConfig(teacher="mine", steps=2), str(data))
    run = Distiller(config, tmp_path, model)
    assert run.network.out_channels == 1
    assert not run.learner.diffusion.learns_variance
    assert torch.isfinite(run.learner.losses(run.network, run.batches.at(0))).all()


def test_guidance_of_the_teacher_is_in_the_target(data, tmp_path):
    """Against a guided prediction written out, for one x_0: with equal timesteps s = u the target is the teacher's."""
    model = tiny_model(classes=3)
    settings = DistillationConfig(teacher="mine", steps=1, guidance=3.0)
    config = student_config(model, settings, str(data), {"training.precision": "fp32", "training.loggers": []})
    run = Distiller(config, tmp_path, model)
    x_t, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    grid = [15, 7, -1]  # of the teacher, with the last stage's student of one step
    run.progress.step = config.training.steps - 1

    def x_0_and_epsilon(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        times, null = torch.full((2,), float(t)), torch.full((2,), 3)
        of_class, of_none = model.network(x, times, labels), model.network(x, times, null)
        epsilon = of_none + 3 * (of_class - of_none)
        alpha, sigma = model.diffusion.schedule.alpha_sigma(t)
        x_0 = ((x - sigma * epsilon) / alpha).clamp(-1, 1)
        return x_0, (x - alpha * x_0) / sigma

    x_0, epsilon = x_0_and_epsilon(x_t, grid[0])
    alpha, sigma = model.diffusion.schedule.alpha_sigma(grid[1])
    expected, _ = x_0_and_epsilon(alpha * x_0 + sigma * epsilon, grid[1])  # its step ends at the data
    found, noise = run.teach(x_t, torch.tensor([15, 15]), labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alpha, sigma = model.diffusion.schedule.alpha_sigma(15)
    torch.testing.assert_close(alpha * found + sigma * noise, x_t, rtol=1e-5, atol=1e-5)


def test_without_data_the_teacher_samples_it_with_its_classes(command, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm.distillation.distiller.NUM_SAMPLES", 7)
    code, output, error = command("distill", teacher, "--steps", 2, *FLAGS, "--out", "run")
    assert code == 0, error
    assert "the teacher samples 7 images first" in output
    written = np.load("run/teacher_images.npz")
    expected = ddpm.load(teacher).sample(7)
    assert np.abs(written["arr_0"] - ((expected.permute(0, 2, 3, 1).numpy() + 1) * 127.5)).max() <= 0.5 + 1e-3
    assert written["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert command("distill", teacher, "--steps", 2, *FLAGS, "--out", "run", "--overwrite")[0] == 0


def test_a_student_teaches_one_of_fewer_steps_on_its_own_grid(command, teacher, data):
    assert command("distill", teacher, "--steps", 4, "--data", data, *FLAGS, "--out", "four")[0] == 0
    for method in ("progressive", "consistency"):
        code, _, error = command(
            "distill", "four", "--steps", 2, "--method", method, "--data", data, *FLAGS, "--out", method
        )
        assert code == 0, error
        assert ddpm.load(method).student.steps == 2
    code, _, error = command("distill", "four", "--steps", 8, "--data", data, *FLAGS)
    assert code == 2
    assert error == "ddpm: error: a teacher of 4 steps can have students of 1, 2, not 8"


def test_dry_run_and_minutes(command, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm.training.dry_run.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("ddpm.distillation.distiller.NUM_SAMPLES", 7)
    monkeypatch.setattr("ddpm.training.dry_run.seconds_per_step", lambda trainer: 2.0)
    code, output, _ = command("distill", teacher, "--steps", 2, *FLAGS, "--out", "run", "--dry-run")
    assert code == 0
    assert "14 steps, 56 images, 8.0 epochs" in output
    assert not (tmp_path / "run").exists()
    small = [word for word in FLAGS if word not in ("--training.steps", STEPS)]
    assert command("distill", teacher, "--steps", 2, *small, "--minutes", 0.5, "--out", "run")[0] == 0
    assert ddpm.load("run").provenance["steps"] == 15


BAD = [
    ([], "give the model that teaches"),
    (["TEACHER", "--steps", 3], "a student of 3 steps does not fit 16 timesteps, .* are 2 and 4"),
    (["TEACHER", "--guidance", "nan"], "guidance must be a number"),
    (["UNCONDITIONAL", "--guidance", 2], "guidance needs a class-conditional model"),
    (["TEACHER", "--diffusion.timesteps", 8], "--diffusion.timesteps cannot be set here"),
    (["TEACHER", "--diffusion.prediction", "epsilon"], "a student cannot predict epsilon"),
    (["TEACHER", "--network.channels", 6], "a level of 6 channels does not divide into 4 groups"),
    (["TEACHER", "--training.stepps", 4], "training has no field 'stepps'"),
    (["TEACHER", "--minutes", 1], "--minutes and --training.steps both"),
    (["nowhere"], "no model at nowhere"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: str(value)[:30])
def test_bad_requests_are_one_line(command, teacher, data, tmp_path, words, said):
    tiny_model().save(tmp_path / "unconditional")
    places = {"TEACHER": teacher, "UNCONDITIONAL": tmp_path / "unconditional"}
    code, _, error = command("distill", *[places.get(word, word) for word in words], "--data", data, *FLAGS)
    assert code == 2
    assert re.search(said, error)
    assert not list(tmp_path.glob("runs/*"))


def test_classes_of_other_names_are_refused(command, teacher, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 9).save(tmp_path / "pictures" / name / "1.png")
    code, _, error = command("distill", teacher, "--steps", 2, "--data", tmp_path / "pictures", *FLAGS)
    assert code == 2
    assert "the classes of" in error
    assert "cat, dog" in error
    assert "class 0, class 1" in error


def test_a_teacher_that_has_no_x_0_at_its_first_timestep_is_refused(command, teacher, data):
    """ε prediction at zero terminal SNR: x_T says nothing of x_0, so there is no v of it either."""
    path = teacher / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    code, _, error = command("distill", teacher, "--steps", 2, "--data", data, *FLAGS)
    assert code == 2
    assert "a zero-terminal-SNR schedule cannot predict epsilon" in error


def test_a_teacher_that_is_not_finite_ends_the_run_with_a_diagnosis(teacher, data, tmp_path):
    model = ddpm.load(teacher)
    flags = {"training.steps": 14, "training.batch_size": 4, "training.precision": "fp32", "training.max_bad_steps": 1}
    config = student_config(model, DistillationConfig(teacher="mine", steps=2), str(data), flags)
    sound = Distiller.teach

    def broken(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        x_0, noise = sound(self, x_t, t, labels)
        return x_0 * float("nan"), noise

    Distiller.teach = broken
    try:
        with pytest.raises(RunStopped, match="not finite"):
            distill(config, tmp_path / "run", model)
    finally:
        Distiller.teach = sound


def test_no_space_for_the_teacher_is_one_line(command, teacher, data, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ddpm.distillation.distiller.write_model", full)
    code, _, error = command("distill", teacher, "--steps", 2, "--data", data, *FLAGS, "--out", "run")
    assert code == 1
    assert error == "ddpm: error: could not write the teacher: no space left on the disk; there was no checkpoint"


def test_training_steps_cannot_change_on_resume(command, teacher, data):
    command("distill", teacher, "--steps", 2, "--data", data, *FLAGS, "--out", "run")
    code, _, error = command("train", "--resume", "run", "--training.steps", 20)
    assert code == 2
    assert "--training.steps cannot change" in error


def test_training_steps_can_change_on_resume_if_there_is_one_stage(command, teacher, data):
    short = [word for word in FLAGS if word not in ("--training.steps", STEPS)]
    words = ["distill", teacher, "--steps", 2, "--teacher-steps", 4, "--data", data, *short, "--out", "run"]
    assert command(*words, "--training.steps", 3)[0] == 0
    code, output, error = command("train", "--resume", "run", "--training.steps", 5)
    assert code == 0, error
    assert "resuming from step 3" in output
    assert ddpm.load("run").provenance["steps"] == 5


@pytest.mark.parametrize("student", [{"steps": 0}, {"steps": 99}, {"steps": 2, "sampler": "magic"}, "four"])
def test_damaged_student_fields_are_one_line(command, teacher, student):
    path = teacher / "ddpm.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "student": student}))
    code, _, error = command("sample", teacher)
    assert code == 2
    assert "student" in error


@pytest.mark.parametrize("method", ["ddrm", "ddnm", "repaint", "dps"])
def test_student_restores_in_its_own_steps_or_says_why_not(method):
    model = tiny_model()
    model.student = Student(steps=4)
    operator = Inpainting.random((1, 8, 8), 0.5, 0)
    y = operator(torch.rand(2, 1, 8, 8) * 2 - 1)
    steps = []
    if method == "dps":
        with pytest.raises(UserError, match="this model was distilled to 4: use ddrm or ddnm"):
            restore(model, y, operator, method=method)
    else:
        restored = restore(model, y, operator, method=method, callback=lambda step: steps.append(step.t))
        assert steps == [15, 11, 7, 3]
        torch.testing.assert_close(operator(restored.mean), y, rtol=0, atol=1e-3)
