"""A distillation as a training run: set up the student, teach it, save it and resume.

The loss is the ordinary one, with the x_0 that the teacher shows in place of the image's own (`lessons.target`).
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.common.distributed import on_main, print_on_main
from ddpm.common.errors import UserError
from ddpm.common.files import atomic_path, user_path
from ddpm.common.hardware import precision_name
from ddpm.common.names import PredictionName
from ddpm.common.pixels import to_uint8
from ddpm.common.randomness import derive_seed
from ddpm.data.config import data_section
from ddpm.distillation.config import DistillationConfig, StudentConfig
from ddpm.distillation.lessons import Curriculum, target
from ddpm.interop.diffusers import Student
from ddpm.interop.diffusers_config import SCHEDULES, schedule_words
from ddpm.model import Model, load
from ddpm.networks import UNet
from ddpm.samplers.denoiser import Clip, Denoiser
from ddpm.training.checkpoint import Checkpoint, write_model, writing
from ddpm.training.config import TrainingConfig, overridden, validate
from ddpm.training.dry_run import cost, fitted
from ddpm.training.finetune import TRAINING_FIELDS, shared_classes
from ddpm.training.optimizer import learning_rate
from ddpm.training.tracking import PendingStep
from ddpm.training.trainer import Batch, Evaluator, Trainer, run

TEACHER = "teacher"  # the copy of the teacher's model in a run, and the checkpoints' name for the teacher of a stage
OWN_SAMPLES = "teacher_images.npz"  # of a run without data
NUM_SAMPLES = 4096
BATCH_SIZE = 64  # if nobody knows the teacher's
TRAINING = {"learning_rate": 2e-4, "warmup": 0, "lr_schedule": "linear", "ema_decay": 0.999}
UNKNOWN_STEPS = 10_000  # of training, if nobody knows how long the teacher was trained
COST = 3  # a step costs up to 7/3 of one of the teacher's training: two guided predictions, and forward and backward


def student_config(
    teacher: Model, settings: DistillationConfig, data: str, overrides: Mapping[str, Any] | None = None
) -> StudentConfig:
    """Return the configuration of a distillation: by default with the teacher's network and v as prediction.

    Args:
        settings: see `DistillationConfig`.
        data: SOURCE of images like those that the teacher was trained on.
        overrides: of the sections `data`, `training` and `network`, and of `diffusion.prediction`, by dotted name.

    Raises UserError if the teacher cannot be distilled like this.
    """
    network = teacher.network
    if not isinstance(network, UNet):
        raise UserError("only models with this package's own network can be distilled")
    words = schedule_words(teacher.diffusion.schedule)
    if words["trained_betas"]:
        schedule = {"betas": words["trained_betas"]}
    else:
        schedule = {
            "schedule": SCHEDULES[words["beta_schedule"]],
            "timesteps": teacher.diffusion.schedule.timesteps,
            "beta_start": words["beta_start"],
            "beta_end": words["beta_end"],
            "zero_terminal_snr": words["rescale_betas_zero_snr"],
        }
    variance = "fixed_small" if teacher.diffusion.learns_variance else teacher.diffusion.variance
    channels, height, width = teacher.image_shape
    training = {**TRAINING, **training_length(teacher), "preview_steps": settings.steps}
    if teacher.null_label is None:
        training["class_drop"] = 0.0
    tree = {
        "data": {
            "source": data,
            "image_size": height if height == width else [height, width],
            "channels": channels,
            "labels": teacher.class_names is not None,
            "random_flip": bool(data_section(teacher.provenance).get("random_flip", False)),
            **teacher.preprocessing._asdict(),
        },
        "diffusion": {**schedule, "prediction": usual_prediction(teacher), "variance": variance},
        "network": {**network.config.model_dump(), "dropout": 0.0},
        "training": training,
        "distillation": settings.model_dump(),
    }
    for name in overrides or {}:
        if not name.startswith(("training.", "data.", "network.")) and name != "diffusion.prediction":
            raise UserError(f"--{name} cannot be set here: the student has its teacher's diffusion")
    config = validate(overridden(tree, "the teacher", overrides or {}), StudentConfig)
    if config.diffusion.prediction == "epsilon":
        raise UserError("a student cannot predict epsilon: it says nothing of x_0 where few steps begin; v and x_0 do")
    Curriculum(settings, teacher.diffusion.schedule, made_for(teacher), config.training.steps)
    teacher.denoiser(
        torch.zeros(1) if teacher.class_names else None, guidance=settings.guidance
    )  # refuses what cannot be
    return config


def training_length(teacher: Model) -> dict[str, int]:
    """Return steps, batch size and checkpoints for a student that takes at most the teacher's own time to train."""
    config = teacher.provenance.get("config")
    trained = config.get("training", {}) if isinstance(config, dict) else {}
    steps, batch_size = trained.get("steps"), trained.get("batch_size")
    if not (isinstance(steps, int) and isinstance(batch_size, int) and steps > 0 and batch_size > 0):
        steps, batch_size = COST * UNKNOWN_STEPS, BATCH_SIZE
    steps = max(1, steps // COST)
    every = min(TrainingConfig().checkpoint_every, max(1, steps // 4))
    return {"steps": steps, "batch_size": batch_size, "checkpoint_every": every, "preview_every": every}


def made_for(teacher: Model) -> int | None:
    """Return the steps that a teacher was made for, if it is a student itself."""
    return teacher.student.steps if teacher.student else None


def usual_prediction(teacher: Model) -> PredictionName:
    """Return what a student that starts from its teacher's weights predicts."""
    return "x_0" if teacher.diffusion.prediction == "x_0" else "v"


def write_own_samples(teacher: Model, file: Path, num: int, drawn: int | None = None) -> None:
    """Write `num` samples of a model as an .npz with their classes: the data of a distillation without data.

    `drawn`: sample only so many, and repeat them.
    """
    batches = teacher.sample_batches(range(drawn or num))
    images = torch.cat([to_uint8(images).permute(0, 2, 3, 1) for _, images in batches])
    arrays = {"arr_0": images[torch.arange(num) % len(images)].numpy()}
    if teacher.num_classes:
        arrays["arr_1"] = np.arange(num) % teacher.num_classes
    with atomic_path(file) as beside:
        np.savez(beside, **arrays)  # type: ignore[arg-type]


class Distiller(Trainer):
    """A distillation: a `Trainer` whose network learns from another one.

    Args:
        config: see `student_config`.
        out: the run directory.
        teacher: the model that teaches; a run that resumes has it in RUN/teacher.
        resume, evaluator: see `Trainer`.
    """

    config: StudentConfig

    def __init__(
        self,
        config: StudentConfig,
        out: Path,
        teacher: Model,
        *,
        resume: bool = False,
        evaluator: Evaluator | None = None,
    ):
        self.first_teacher = self.teacher = teacher
        schedule, steps, prediction = teacher.diffusion.schedule, config.training.steps, config.diffusion.prediction
        self.curriculum = Curriculum(config.distillation, schedule, made_for(teacher), steps, prediction)
        super().__init__(config, out, resume=resume, evaluator=evaluator)
        self.fine_tunes = not resume  # the first checkpoint, and RUN/teacher with it, comes before config.yaml

    def student_network(self) -> tuple[UNet, int | None]:
        """Return the teacher's network without its dropout and its variance, and its null class.

        A network of another shape or with another prediction than the usual one begins with random weights.
        """
        teacher, given = self.first_teacher, self.first_teacher.network
        assert isinstance(given, UNet)
        names = self.dataset.class_names
        if names is not None and shared_classes(names, teacher.class_names or []) != {i: i for i in range(len(names))}:
            raise UserError(
                f"the classes of {self.config.data.source} ({', '.join(names[:5])}, …) are not those of the teacher "
                f"({', '.join((teacher.class_names or [])[:5])}, …), in the same order"
            )
        channels = teacher.image_shape[0]
        config = self.config.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.training.seed, "weights"))
            network = UNet(config, given.image_size, channels, channels, given.num_classes)
        same = config == given.config.model_copy(update={name: getattr(config, name) for name in TRAINING_FIELDS})
        if same and self.config.diffusion.prediction == usual_prediction(teacher):
            wanted = network.state_dict()
            network.load_state_dict({name: tensor[: len(wanted[name])] for name, tensor in given.state_dict().items()})
        return network, teacher.null_label

    def _prepare(self) -> None:
        self.network, self.null_label = self.student_network()
        super()._prepare()
        self.first_teacher.to(self.device)
        self.batches.timestep_sampler = self.curriculum
        self.learner.teach = self.teach

    def teach(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the x_0 that the student is to predict at (x_t, t), and the noise that belongs to it."""
        precision = precision_name(self.plan.dtype)
        guidance = self.config.distillation.guidance if self.teacher is self.first_teacher else 1.0
        # Clipped predictions are biased at black and white, and the bias would grow from stage to stage. But the x_0
        # that follows from ε has no bounds where √ᾱ is small.
        clip: Clip = "static" if self.teacher.diffusion.prediction == "epsilon" else None
        teacher = self.teacher.denoiser(labels, guidance=guidance, precision=precision, clip=clip)
        follower = teacher
        if self.config.distillation.method == "consistency":
            follower = Denoiser(self.network, self.learner.diffusion, labels=labels, clip=None, dtype=self.plan.dtype)
        x_0 = target(x_t, t, self.curriculum.lesson(self.progress.step), teacher, follower)
        return x_0, self.learner.diffusion.epsilon_from_x_0(x_0, x_t, t)

    def step(self, batch: Batch, *, stop: bool = False) -> PendingStep:
        """Take the next step. At the first of a stage, the student of the last stage becomes the teacher."""
        number, first, _ = self.curriculum.stage(self.progress.step)
        if number > 0 and self.progress.step == first:
            self.learner.ema.copy_to(self.network)
            self.learner.ema.updates = 0  # its warm-up begins again
            self.teacher = self.stage_teacher()
        return super().step(batch, stop=stop)

    def stage_teacher(self) -> Model:
        """Return the network as it is now as a teacher."""
        return Model(
            copy.deepcopy(self.network),
            self.learner.diffusion,
            image_shape=self.config.data.image_shape,
            class_names=self.first_teacher.class_names,
            null_label=self.null_label,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, which follows its schedule in each stage anew."""
        _, first, following = self.curriculum.stage(step)
        length = {"steps": following - first}
        return learning_rate(self.config.training.model_copy(update=length), step - first)

    def model(self) -> Model:
        """Return the averaged weights as a student: of the stage, before the last one."""
        model, settings, teacher = super().model(), self.config.distillation, self.first_teacher
        model.class_names = teacher.class_names
        model.student = Student(steps=self.curriculum.student_steps(max(0, self.progress.step - 1)))
        origin = f"{settings.teacher} ({teacher.weights_hash})"
        guidance = settings.guidance
        if guidance == 1 and teacher.student:
            guidance = teacher.provenance.get("guidance", guidance)  # what the teacher has learnt, its student learns
        model.provenance = {"distilled from": origin, "guidance": guidance, **model.provenance}
        return model

    def _write_checkpoint(self) -> None:
        if not (self.out / TEACHER).exists():
            with writing("the teacher", self.checkpoints.kept):
                write_model(self.first_teacher, self.out / TEACHER, print_on_main)
        super()._write_checkpoint()

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        later = self.teacher is not self.first_teacher
        return super()._tensors() | ({TEACHER: self.teacher.network.state_dict()} if later else {})

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"training_steps": self.config.training.steps}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, with the teacher of its stage."""
        asked, planned = self.config.training.steps, checkpoint.state["training_steps"]
        if asked != planned and len(self.curriculum.stages) > 1:
            raise UserError(
                f"--training.steps cannot change when a distillation resumes: its stages end at {planned:,}"
            )
        super().restore(checkpoint)
        if TEACHER in checkpoint.parts:
            self.teacher = self.stage_teacher()
            self.teacher.network.load_state_dict(checkpoint.parts[TEACHER])


def distill(
    config: StudentConfig,
    out: str | Path,
    teacher: Model | None = None,
    *,
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    evaluator: Evaluator | None = None,
) -> Path:
    """Distil in the run directory `out`; return it, with the student in out/model.

    Args:
        config: see `student_config`. If its data are `OWN_SAMPLES` in `out`, the teacher samples them first.
        out: the run directory; `~` is the home folder.
        teacher: the model that teaches; default: the one that `config` names, or the copy in a run that resumes.
        minutes: train for about so long, instead of `training.steps`; see `ddpm.training.dry_run.fitted`.
        resume, overwrite, evaluator: see `ddpm.training.train`, also for what it raises.
    """
    out = user_path(out)

    def distiller() -> Distiller:
        model = teacher or load(out / TEACHER if resume else config.distillation.teacher)
        own, timed = out / OWN_SAMPLES, config
        if not resume and config.data.source == str(own):
            print_on_main(f"no data given: the teacher samples {NUM_SAMPLES:,} images first")
            on_main(lambda: write_own_samples(model, own, NUM_SAMPLES))
        if minutes is not None:
            timed = config.model_copy(update={"training": fitted(Distiller(config, out, model), minutes)})
            print_on_main(f"{minutes:g} minutes: {timed.training.steps:,} steps")
        return Distiller(timed, out, model, resume=resume, evaluator=evaluator)

    run(distiller, out, resume, overwrite)
    return out


def dry_run(config: StudentConfig, out: str | Path, teacher: Model) -> str:
    """Return what a distillation would cost, see `ddpm.training.dry_run`; nothing is written in `out`."""
    with tempfile.TemporaryDirectory() as folder:
        if config.data.source == str(user_path(out) / OWN_SAMPLES):
            own = Path(folder) / OWN_SAMPLES
            write_own_samples(teacher, own, NUM_SAMPLES, drawn=1)
            config = config.model_copy(update={"data": config.data.model_copy(update={"source": str(own)})})
        return cost(Distiller(config, Path(folder), teacher))
