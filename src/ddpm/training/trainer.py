"""A training run in its directory: set up, train, save and resume."""

import contextlib
import copy
import math
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.common.distributed import is_main, join, my_share, on_main, print_on_main, world_size
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import user_path
from ddpm.common.hardware import default_device
from ddpm.common.names import VERSION
from ddpm.data import open_dataset
from ddpm.data.notes import data_notes
from ddpm.model import Model, load
from ddpm.training.batches import Batch, BatchSource, place_dataset
from ddpm.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    check_classes,
    claimed,
    empty,
    first_non_finite_part,
    model_step,
    write_config,
    write_model,
    writing,
)
from ddpm.training.compute import plan_compute, reproducible_kernels
from ddpm.training.config import Config, config_notes
from ddpm.training.finetune import adopt, build_network, copy_weights
from ddpm.training.guards import NonFiniteGuard, StopRequest, deferred_signals, lost_process_explained
from ddpm.training.optimizer import learning_rate
from ddpm.training.step import agree_on_micro_batch, build_learner, train_step
from ddpm.training.tracking import (
    BrokenFileReporter,
    PendingStep,
    Previews,
    Progress,
    Timer,
    Tracking,
    check_loggers,
    log_record,
    progress_bar,
    size_of,
)

# (model with the averaged weights) -> metrics; the first one decides which checkpoint is best, and lower is better.
# Every process calls it at once; it may share the work through `ddpm.common.distributed`.
Evaluator = Callable[[Model], dict[str, float]]


class Trainer:
    """A run: its data, its network and optimizer, and the directory it writes to.

    Nothing is written before `setup`, so a wrong configuration, dataset or model is found before any file changes.
    The host never waits for the step it has just queued on a GPU: the numbers of a step are read while the next one
    runs. A skipped step, or a request to stop, is noticed then.

    Args:
        config: of the run; see `load_config`.
        out: the run directory.
        init: a model, or its path or name, whose weights, network and diffusion the run starts from.
        resume: start from the newest good checkpoint in `out`.
        evaluator: called every `training.evaluate_every` steps.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        *,
        init: str | Path | Model | None = None,
        resume: bool = False,
        evaluator: Evaluator | None = None,
    ):
        join()
        self.out, self.resume, self.evaluator, self.device = out, resume, evaluator, default_device()
        self.progress = Progress()
        self.tracking: Tracking | None = None  # in the main process, from `setup` on
        self.best: dict[str, Any] | None = None  # the evaluation with the lowest first metric, and its step
        self.metrics: dict[str, float] = {}  # the latest evaluation, and its step
        self.saved: int | None = None  # the step of the newest checkpoint
        check_loggers(config.training.loggers)
        self.checkpoints = Checkpoints(out / "checkpoints", config.training.keep_checkpoints)
        checkpoint = self.checkpoints.to_resume(print_on_main) if resume else None
        model = init if isinstance(init, Model) or init is None else load(init, device="cpu")
        self.fine_tunes, name = model is not None, "a model" if isinstance(init, Model) else str(init)
        self.origin = None if model is None else f"{name} ({model.weights_hash})"
        self.config = config if model is None else adopt(config, model)
        self.guard = NonFiniteGuard(out / "set_aside", self.config.training)
        self.dataset = open_dataset(self.config.data)
        self.broken_files = BrokenFileReporter(self.dataset.report)
        self.broken_files.tell()
        self.previews = Previews(out, self.dataset, self.config.training)
        self.network, self.null_label = build_network(self.config, self.dataset)
        if model is not None:
            shared = copy_weights(self.network, model, self.dataset.class_names)
            if self.dataset.class_names is not None:
                print_on_main(f"classes taken over from {name}: {shared} of {len(self.dataset.class_names)}")
        self._prepare()
        if checkpoint is not None:
            self.restore(checkpoint)

    def _prepare(self) -> None:
        """Put the data and the network where they are computed with, and build everything that a step needs."""
        config, training = self.config, self.config.training
        place_dataset(self.dataset, self.device)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.plan, self.memory = plan_compute(training, self.network, self.dataset, self.device)
        self.batches = BatchSource(
            self.dataset,
            config.diffusion.build_timestep_sampler(),
            batch_size=training.batch_size,
            seed=training.seed,
            positions=my_share(training.batch_size),
            random_flip=config.data.random_flip,
            null_label=self.null_label,
            class_drop=training.class_drop,
            device=self.device,
        )
        self.learner = build_learner(self.network, config.diffusion, training, self.plan)
        self.averaged = copy.deepcopy(self.network)  # holds the averaged weights while they are sampled from or saved

    def notes(self) -> str:
        """Return what the user probably did not mean, as lines, each with its end."""
        return "".join(f"note: {note}\n" for note in (*config_notes(self.config), *data_notes(self.dataset)))

    def summary(self) -> str:
        """Say what is trained, and how it is computed."""
        parameters, images = sum(p.numel() for p in self.network.parameters()), size_of(self.dataset)
        return (
            f"network: {parameters:,} parameters\n"
            f"data: {self.config.data.source}, {'streamed' if images is None else f'{images:,} images'}\n"
            f"engine: {self.plan}{self.plan.why(self.config.training.precision)}, "
            f"about {self.memory.total(self.plan.micro_batch) / 2**30:.1f} GiB"
        )

    def setup(self) -> None:
        """Write what a run begins with, or cut its logs back to the checkpoint that it resumes from."""

        def begin() -> None:
            if not self.resume:
                empty(self.out)
            shown = self.config.model_dump(mode="json")
            # Its metrics.jsonl comes first, because it marks the directory as a run.
            try:
                self.tracking = Tracking(self.out, self.config.training.loggers, self.progress.step, shown)
            except UserError:
                if not self.resume:
                    empty(self.out)  # so that the next try can begin
                raise
            (self.out / "samples").mkdir(exist_ok=True)
            if not self.fine_tunes:
                write_config(self.config, self.out)
            if self.saved is not None and model_step(self.out / "model") < self.saved:
                self._write_model()  # the run ended between its checkpoint and its model

        self._write("the run directory", begin)
        if self.fine_tunes:  # The start cannot be rebuilt from the seed: without this checkpoint nobody could resume.
            self.save()
            self._write("the configuration", lambda: write_config(self.config, self.out))

    def _write(self, what: str, action: Callable[[], object]) -> None:
        """Let the main process run `action`, which writes `what`; a failure ends the run and says what is kept."""
        on_main(writing(what, self.checkpoints.kept)(action))

    def due(self, step: int) -> set[str]:
        """Return what is to be done after `step` steps: each task at its interval, and every task after the last."""
        training = self.config.training
        intervals = {
            "log": training.log_every,
            "preview": training.preview_every,
            "evaluate": training.evaluate_every if self.evaluator else 0,
            "checkpoint": training.checkpoint_every,
        }
        last = step == training.steps
        return {task for task, every in intervals.items() if every and (last or step % every == 0)}

    def fit(self, request: StopRequest) -> int | None:
        """Train to `training.steps`; return None, or the signal at whose request the run stopped earlier."""
        training, progress = self.config.training, self.progress
        self.network.train()
        if world_size() > 1:
            agree_on_micro_batch(self.learner, self.batches.at(progress.step).to(self.device))
        pending: deque[PendingStep] = deque()
        self.timer = Timer(progress.step)
        with progress_bar(progress, training) as bar, contextlib.closing(self.batches.steps(progress.step)) as feed:
            while progress.step < training.steps:
                pending.append(self.step(next(feed), stop=request.signal is not None))
                due = self.due(progress.step)
                in_flight = 1 if self.device.type == "cuda" and not due else 0
                stop = self.guard.settle(pending, in_flight, self.progress, self.learner)
                bar.update(training.batch_size)
                if "log" in due:
                    bar.set_postfix_str(f"step {progress.step:,} loss {self.log():.4f}", refresh=False)
                if due - {"log"}:
                    self.timer.lap(self.progress)
                    self.on_step(due)
                    self.network.train()
                    self.timer.restart()
                if request.signal is not None and world_size() == 1:  # several processes must agree first, in a step
                    stop = True
                if stop:
                    self.guard.settle(pending, 0, self.progress, self.learner)
                    self.timer.lap(self.progress)
                    return request.signal or signal.SIGTERM  # another process was asked
        return None

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, …"""
        return learning_rate(self.config.training, step)

    def step(self, batch: Batch, *, stop: bool = False) -> PendingStep:
        """Take the next step, with a smaller micro-batch if memory runs out; its numbers may still be on their way."""
        number, training = self.progress.step, self.config.training
        while True:
            try:
                result = train_step(self.learner, batch, self.learning_rate(number), stop=stop)
                break
            except torch.OutOfMemoryError as error:
                self.learner.optimizer.zero_grad()
                if world_size() > 1:  # the others wait for this gradient: too late to change
                    raise RunStopped("out of memory; use --resume with a smaller --training.micro_batch") from error
                self.learner.halve_micro_batch()
        if self.batches.timestep_sampler.adaptive:
            self.batches.update_timestep_sampler(number, result.losses)
        self.progress.step += 1
        self.progress.images += training.batch_size
        return PendingStep(number, batch, result.numbers)

    def on_step(self, due: set[str]) -> None:
        """Do what is due between two steps, apart from the log."""
        on_main(self._check_finite)  # before anything is sampled, evaluated or written
        model = None
        try:
            if "preview" in due:
                model = self.model()
                self.preview(model)
            if "evaluate" in due:
                self.evaluate(model or self.model())
        except Exception:
            self._rescue()
            raise
        if "checkpoint" in due:  # after the evaluation, whose result it holds
            self.save()

    def log(self) -> float:
        """Write the numbers since the last log line to metrics.jsonl and the other loggers; return the mean loss."""
        steps, seconds = self.timer.lap(self.progress)
        record = log_record(self.progress, self.learning_rate(self.progress.step - 1), self.learner, self.guard.skipped)
        record["images_per_second"] = round(steps * self.config.training.batch_size / max(seconds, 1e-9), 2)
        if size := size_of(self.dataset):
            record["epoch"] = round(self.progress.images / size, 4)
        self._write("metrics.jsonl", lambda: self.track(record))
        return record["loss"]

    def track(self, record: dict[str, Any]) -> None:
        """Give a record to the loggers, which only the main process has."""
        if self.tracking is not None:
            self.tracking.log(record)

    def model(self) -> Model:
        """Return the averaged weights as a model."""
        self.learner.ema.copy_to(self.averaged)
        return Model(
            self.averaged,
            self.config.diffusion.build(),
            image_shape=self.config.data.image_shape,
            class_names=self.dataset.class_names,
            null_label=self.null_label,
            provenance={
                "ddpm": VERSION,
                **({"fine-tuned from": self.origin} if self.origin else {}),
                "config": self.config.model_dump(mode="json"),
                "data": {"images": size_of(self.dataset), "fingerprint": self.dataset.fingerprint},
                "steps": self.progress.step,
                "images": self.progress.images,
                "seconds": round(self.progress.seconds, 1),
                "engine": str(self.plan),
                "metrics": self.metrics,
            },
        )

    def preview(self, model: Model) -> None:
        """Write RUN/samples/NNNNNN.png, and log how far its colours are from the data's."""
        images, step = self.previews.draw(model), self.progress.step

        def write() -> None:
            if drift := self.previews.save(images, step):
                self.track({"step": step, **drift})

        self._write("the preview", write)

    def evaluate(self, model: Model) -> None:
        """Call the evaluator. The best model so far is kept in RUN/best, and its checkpoint is not removed."""
        assert self.evaluator is not None  # else no evaluation is due
        metrics = self.evaluator(model)
        found = model.provenance["metrics"] = {"step": self.progress.step, **metrics}
        name = next(iter(metrics))
        better = math.isfinite(metrics[name]) and (self.best is None or metrics[name] < self.best[name])

        def write() -> None:
            self.track(found)
            if better:
                write_model(model, self.out / "best", print_on_main)

        self._write("the evaluation", write)
        self.metrics = found
        if better:
            self.best = found
            self.save()

    def _check_finite(self) -> None:
        """Stop the run if weights, averages or moments are not finite: such a model is never written."""
        if bad := first_non_finite_part(self._tensors()):
            rate = self.config.training.learning_rate
            raise RunStopped(
                f"after {self.progress.step:,} steps {bad} is not finite, so neither checkpoint nor model was written; "
                f"{self.checkpoints.kept()}; a training.learning_rate below {rate:.2g} or fp32 may help"
            )

    def save(self) -> None:
        """Write a checkpoint, with all that is needed to resume exactly, and the model."""
        if self.progress.step == self.saved:
            return
        self.saved = self.progress.step
        on_main(self._write_checkpoint)
        self.broken_files.tell()

    def _write_checkpoint(self) -> None:
        step = self.progress.step
        self._check_finite()
        with writing(f"checkpoint {step:06d}", self.checkpoints.kept):
            if self.tracking is not None:
                self.tracking.sync()
            spare = self.best["step"] if self.best else None
            self.checkpoints.save(step, self._tensors(), self._state(), spare)
            self._write_model()

    def _write_model(self) -> None:
        """Write RUN/model, with the newest preview in its model card."""
        model = self.model()
        if write_model(model, self.out / "model", print_on_main):
            self.previews.show(self.progress.step, model.student)

    def _rescue(self) -> None:
        """Save when a preview or an evaluation fails, so that a resumed run does not fail there again.

        Only in the main process, because the others may be anywhere; a second error must not hide the first.
        """
        if is_main() and self.progress.step != self.saved:
            with contextlib.suppress(Exception):
                self._write_checkpoint()
                print_on_main(f"saved at step {self.progress.step:,}, before the failure")

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors that are needed to resume exactly, by file."""
        parts = {
            "network": self.network.state_dict(),
            "ema": self.learner.ema.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "timestep_sampler": self.batches.timestep_sampler.state_dict(),
        }
        return {name: tensors for name, tensors in parts.items() if tensors}

    def _state(self) -> dict[str, Any]:
        """Return the rest of what is needed to resume exactly, as JSON."""
        return {
            "progress": asdict(self.progress),
            "health": {"skipped": self.guard.skipped, "in_a_row": self.guard.in_a_row},
            "micro_batch": self.learner.micro_batch,
            "seed": self.config.training.seed,
            "data": {
                "fingerprint": self.dataset.fingerprint,
                "position": self.batches.state_dict(self.progress.step),
            },
            "class_names": self.dataset.class_names,
            "engine": self._engine(),
            "best": self.best,
            "metrics": self.metrics,
            "origin": self.origin,
        }

    def _engine(self) -> dict[str, str]:
        return {"description": str(self.plan), "torch": torch.__version__}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: the inverse of `save`.

        Raises UserError if it does not belong to this configuration or these classes, or has more steps than asked for.
        """
        parts, state = checkpoint.parts, checkpoint.state
        check_classes(self.config.data.source, state.get("class_names"), self.dataset.class_names, self.out)
        try:
            self.network.load_state_dict(parts["network"])
            self.learner.ema.load_state_dict(parts["ema"])
            self.learner.optimizer.load_state_dict(parts["optimizer"])
            self.batches.timestep_sampler.load_state_dict(parts.get("timestep_sampler", {}))
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"checkpoint {checkpoint.path} has another configuration: {reason}") from None
        images = state["progress"]["step"] * self.config.training.batch_size  # for checkpoints that do not say
        self.progress = Progress(**{"images": images} | state["progress"])
        self.guard.skipped, self.guard.in_a_row = state["health"]["skipped"], state["health"]["in_a_row"]
        self.best, self.metrics, self.origin = state["best"], state.get("metrics", {}), state.get("origin")
        done, asked = self.progress.step, self.config.training.steps
        self.saved = done
        self.batches.resume_at(done, self.progress.images)
        if state["data"]["position"]:
            self.batches.load_state_dict(state["data"]["position"])
        if asked < done:
            raise UserError(
                f"the run in {self.out} has done {done:,} steps; --training.steps must be larger (got {asked:,})"
            )
        if asked == done:
            print_on_main(f"all {done:,} steps are done already; for more give --training.steps")
        else:
            print_on_main(f"resuming from step {done:,} ({checkpoint.path})")
        if state["data"]["fingerprint"] != self.dataset.fingerprint:
            print_on_main("warning: the dataset changed since this checkpoint; resuming, but not bit-exactly")
        if state["engine"] == self._engine():
            self.learner.micro_batch = state["micro_batch"]  # smaller than planned if memory had run out
        else:
            print_on_main(f"the checkpoint was computed on {state['engine']['description']}: expect other rounding")

    def close(self) -> None:
        self.dataset.close()
        if self.tracking is not None:
            self.tracking.close()


def train(
    config: Config,
    out: str | Path,
    *,
    init: str | Path | Model | None = None,
    resume: bool = False,
    overwrite: bool = False,
    evaluator: Evaluator | None = None,
) -> Path:
    """Train in the run directory `out`; return it, with the averaged weights in out/model.

    Args:
        config: see `load_config`.
        out: the run directory; `~` is the home folder.
        init: a model whose weights, network and diffusion the run starts from.
        resume: continue from the newest good checkpoint in `out`.
        overwrite: start again if `out` holds a run already.
        evaluator: called every `training.evaluate_every` steps.

    Raises:
        UserError: the request is impossible; the message says why.
        RunStopped: numbers that are not finite, no space left, a lost process; what was saved stays.
        KeyboardInterrupt, SystemExit(143): on SIGINT and SIGTERM, after saving.
    """
    out = user_path(out)
    run(lambda: Trainer(config, out, init=init, resume=resume, evaluator=evaluator), out, resume, overwrite)
    return out


def run(trainer: Callable[[], Trainer], out: Path, resume: bool, overwrite: bool) -> None:
    """Run a trainer, which is built once `out` is claimed, to its last step; see `train` for what it raises."""
    with lost_process_explained(out), reproducible_kernels(default_device()), contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(claimed(out, resume=resume, overwrite=overwrite)))
        running = trainer()
        stack.callback(running.close)
        print_on_main(running.notes() + running.summary())
        running.setup()
        with deferred_signals() as request:
            number = running.fit(request)
            if number is not None:
                running.save()
                print_on_main(f"saved at step {running.progress.step:,}; resume with ddpm train --resume {out}")
                request.leave(number)
