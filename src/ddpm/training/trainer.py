"""A training run in its directory: start, resume, save."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm.common.errors import RunStopped, UserError, require
from ddpm.common.files import atomic_write, user_path
from ddpm.common.pixels import numbered
from ddpm.data import open_dataset
from ddpm.interop.card import add_samples
from ddpm.model import Model, load
from ddpm.training.batches import Batches, Loader
from ddpm.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    claimed,
    empty,
    first_nonfinite,
    model_step,
    writing,
)
from ddpm.training.compute import choose_engine, dataset_bytes, reproducible_kernels
from ddpm.training.config import Config
from ddpm.training.finetune import adopt, build_network, copy_weights
from ddpm.training.guards import NonFiniteGuard, deferred_signals
from ddpm.training.loop import Loop, size_of
from ddpm.training.processes import launch, lost_peer, on_main
from ddpm.training.tracking import (
    BrokenFileReporter,
    Tracking,
    channel_drift,
    channel_means,
    draw_preview,
    save_preview,
)

# (model with the averaged weights) -> figures; the first decides which checkpoint is best, and lower is better.
# Called in every process at once; it may share the work out through torch.distributed.
Evaluator = Callable[[Model], dict[str, float]]


class Run:
    """A loop and everything around it that is written to the run directory.

    Nothing is written before `open`: what is wrong with the configuration, the data or the given model shows before.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        accelerator: Accelerator,
        *,
        init: str | Path | Model | None,
        resume: bool,
        evaluator: Evaluator | None,
    ):
        self.out, self.accelerator, self.evaluator, self.resume = out, accelerator, evaluator, resume
        self.checkpoints = Checkpoints(out / "checkpoints", config.training.keep_checkpoints)
        self.tracking: Tracking | None = None
        self.best: dict[str, Any] | None = None
        self.figures: dict[str, float] = {}  # of the latest evaluation, and its step
        self.origin: str | None = None  # what is fine-tuned
        self.saved: int | None = None  # the step of the newest checkpoint
        if "wandb" in config.training.loggers:
            require("wandb", "track")
        checkpoint = None
        if resume and self.checkpoints.steps():
            checkpoint = self.checkpoints.newest(accelerator.print)
        elif resume and (kept := model_step(out / "model")) >= 0:
            raise UserError(
                f"{out} holds a model of step {kept:,} but no checkpoint to go on from: with --init {out} --out NEW "
                "another run begins with its weights; with --overwrite this one begins anew"
            )
        elif resume:
            accelerator.print("there is no checkpoint yet: the run begins again")
        if init is not None:
            name = "a model" if isinstance(init, Model) else init
            init = init if isinstance(init, Model) else load(init, device="cpu")
            self.origin = f"{name} ({init.weights_hash})"
            config = adopt(config, init)
        self.config, training = config, config.training
        self.dataset = open_dataset(config.data)
        self.skipped = BrokenFileReporter(self.dataset.report, accelerator)
        self.skipped.tell()
        self.network, self.null_label = build_network(config, self.dataset)
        if init is not None:
            shared = copy_weights(self.network, init, self.dataset.class_names, self.null_label)
            if self.dataset.class_names is not None:
                accelerator.print(f"classes taken over from {name}: {shared} of {len(self.dataset.class_names)}")
        self.network.to(accelerator.device).to(memory_format=torch.channels_last)
        self.loader = Loader(  # before the engine is chosen: it decides whether the data lie on the card
            self.dataset, training.batch_size, training.seed, config.data.random_flip, device=accelerator.device
        )
        engine, self.memory = choose_engine(
            training,
            self.network,
            dataset_bytes(self.dataset, accelerator.device),
            accelerator.device,
            accelerator.num_processes,
        )
        batches = Batches(
            self.loader,
            config.diffusion.build_timestep_sampler(),
            seed=training.seed,
            global_batch=training.batch_size,
            null_label=self.null_label,
            class_drop=training.class_drop if self.null_label is not None else 0.0,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        health = NonFiniteGuard(out / "set_aside", training.max_bad_steps)
        self.loop = Loop(training, config.diffusion, self.network, batches, engine, accelerator, health)
        self.averaged = copy.deepcopy(self.network)  # where the averaged weights are put to be drawn with and saved
        self.fine_tunes = init is not None
        if checkpoint is not None:
            self._restore(checkpoint)
        accelerator.print(self.summary())

    def summary(self) -> str:
        """What is trained, and how it is computed."""
        parameters = sum(p.numel() for p in self.network.parameters())
        engine, images = self.loop.engine, size_of(self.dataset)
        return (
            f"network: {parameters:,} parameters\n"
            f"data: {self.config.data.source}, {'streamed' if images is None else f'{images:,} images'}\n"
            f"engine: {engine}, about {self.memory.total(engine.micro_batch) / 2**30:.1f} GiB"
        )

    def open(self) -> None:
        """Write what a run begins with, or cut its logs back to the checkpoint it goes on from."""
        step = self.loop.progress.step

        def begin() -> None:
            with writing("the run directory", self._kept):
                if not self.resume:
                    empty(self.out)
                shown = self.config.model_dump(mode="json")
                # its metrics.jsonl first: by that a directory is known for a run's
                self.tracking = Tracking(self.out, self.config.training.loggers, step, shown)
                (self.out / "samples").mkdir(exist_ok=True)
                if not self.fine_tunes:
                    configure()
                if self.saved is not None and model_step(self.out / "model") < self.saved:
                    self._save(self.model())  # the run ended between its checkpoint and its model

        def configure() -> None:
            with writing("the configuration", self._kept):
                atomic_write(self.out / "config.yaml", self.config.to_yaml(), durable=True)

        on_main(self.accelerator, begin)
        if self.fine_tunes:  # what it starts from is not to be had from the seed, so only now can it be gone on with
            self.checkpoint()
            on_main(self.accelerator, configure)

    def track(self, record: dict[str, Any]) -> None:
        """To the trackers, which only the first process has."""
        if self.tracking is not None:
            self.tracking.log(record)

    def close(self) -> None:
        self.dataset.close()
        if self.tracking is not None:
            self.tracking.close()

    def log(self, record: dict[str, Any]) -> None:
        """One line to the trackers."""

        def write() -> None:
            with writing("metrics.jsonl", self._kept):
                self.track(record)

        on_main(self.accelerator, write)

    def after_step(self, done: int) -> None:
        """Whatever is due after a step."""
        training = self.config.training
        last = done == training.steps
        model = None
        on_main(self.accelerator, self.check_finite)  # before anything is drawn, measured or written
        try:
            if training.preview_every and (done % training.preview_every == 0 or last):
                model = self.model()
                self.preview(model, done)
            if self.evaluator and training.evaluate_every and (done % training.evaluate_every == 0 or last):
                self.evaluate(self.evaluator, model or self.model(), done)
        except Exception:
            self._rescue()
            raise
        if done % training.checkpoint_every == 0 or last:  # after the evaluation, of which it knows
            self.checkpoint()

    def model(self) -> Model:
        """The averaged weights as a model."""
        self.loop.ema.copy_to(self.averaged)
        progress = self.loop.progress
        return Model(
            self.averaged,
            self.config.diffusion.build(),
            image_shape=self.config.data.image_shape,
            class_names=self.dataset.class_names,
            null_label=self.null_label,
            provenance={
                "ddpm": version("ddpm"),
                **({"fine-tuned from": self.origin} if self.origin else {}),
                "config": self.config.model_dump(mode="json"),
                "data": {"images": size_of(self.dataset), "fingerprint": self.dataset.fingerprint},
                "steps": progress.step,
                "images": progress.images,
                "seconds": round(progress.seconds, 1),
                "engine": str(self.loop.engine),
                "metrics": self.figures,
            },
        )

    @functools.cached_property
    def means(self) -> Tensor | None:
        """Of the data's colours; read from hundreds of images, so only where there are previews to compare."""
        return channel_means(self.dataset)

    def preview(self, model: Model, step: int) -> None:
        """RUN/samples/NNNNNN.png, and how far its colours lie from the data's."""
        training = self.config.training
        images = draw_preview(model, training.preview_images, training.preview_steps, training.seed, self.accelerator)

        def keep() -> None:
            assert images is not None  # drawn for the first process, which alone is here
            with writing("the preview", self._kept):
                save_preview(images, self.out / "samples", step)
                if self.means is not None:
                    self.track({"step": step, **channel_drift(images, self.means)})

        on_main(self.accelerator, keep)

    def evaluate(self, evaluator: Evaluator, model: Model, step: int) -> None:
        """Ask the evaluator; the best so far is kept in RUN/best, and its checkpoint is spared."""
        figures = evaluator(model)
        found = model.provenance["metrics"] = {"step": step, **figures}
        name = next(iter(figures))
        better = math.isfinite(figures[name]) and (self.best is None or figures[name] < self.best[name])

        def keep() -> None:
            with writing("the evaluation", self._kept):
                self.track(found)
                if better:
                    self._write_model(model, self.out / "best")

        on_main(self.accelerator, keep)
        self.figures = found
        if better:
            self.best = found
            self.checkpoint()

    def check_finite(self) -> None:
        """Stop the run if weights, averages or moments are not finite: such a model is never written."""
        if bad := first_nonfinite(self.loop.tensors()):
            step, rate = self.loop.progress.step, self.config.training.learning_rate
            raise RunStopped(
                f"after {step:,} steps {bad} is not finite, so neither checkpoint nor model was written; "
                f"{self._kept()}; a training.learning_rate below {rate:.2g} or fp32 may help"
            )

    def checkpoint(self) -> None:
        """Save all that is needed to go on, and the model."""
        if self.loop.progress.step == self.saved:
            return
        self.saved = self.loop.progress.step
        on_main(self.accelerator, self._write_checkpoint)
        self.skipped.tell()

    def _write_checkpoint(self) -> None:
        step = self.loop.progress.step
        self.check_finite()
        with writing(f"checkpoint {step:06d}", self._kept):
            if self.tracking is not None:
                self.tracking.sync()
            spare = self.best["step"] if self.best else None
            self.checkpoints.save(step, self.loop.tensors(), self._state(), spare)
            self._save(self.model())

    def _rescue(self) -> None:
        """Save where a preview or an evaluation has failed, so that the run need not go back, to fail there again.

        In the first process alone, since the others may be anywhere; and no second error may hide the first.
        """
        step = self.loop.progress.step
        if self.accelerator.is_main_process and step != self.saved:
            with contextlib.suppress(Exception):
                self._write_checkpoint()
                self.accelerator.print(f"saved at step {step:,}, before what failed there")

    def _save(self, model: Model) -> None:
        """RUN/model, with the newest preview in its card."""
        training = self.config.training
        if not self._write_model(model, self.out / "model"):
            return
        # not those that a run has drawn beyond, before it went back behind a damaged checkpoint
        previews = [path for path in numbered(self.out / "samples") if int(path.stem) <= model.provenance["steps"]]
        if previews:
            caption = f"After {int(previews[-1].stem):,} steps: the first images of seed {training.seed}, none of them "
            caption += f"chosen; {training.preview_steps} steps of DPM-Solver++."
            add_samples(self.out / "model", previews[-1], caption)

    def _write_model(self, model: Model, folder: Path) -> bool:
        """Whether the folder could be replaced; what somebody has put into it is no reason to end the run."""
        try:
            model.save(folder)
        except UserError as error:
            self.accelerator.print(error)
            return False
        return True

    def _state(self) -> dict[str, Any]:
        position = self.loader.state_dict(self.loop.progress.step)
        data = {"fingerprint": self.dataset.fingerprint, "position": position}
        engine = {"description": str(self.loop.engine), "torch": torch.__version__}
        return {
            **self.loop.state(),
            "seed": self.config.training.seed,
            "data": data,
            "class_names": self.dataset.class_names,
            "engine": engine,
            "best": self.best,
            "figures": self.figures,
            "origin": self.origin,
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, say = checkpoint.state, self.accelerator.print
        self._check_classes(state.get("class_names"))
        try:
            self.loop.restore(checkpoint.parts, state)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"checkpoint {checkpoint.path} is of another configuration: {reason}") from None
        self.best, self.figures = state["best"], state.get("figures", {})
        self.origin = state.get("origin")
        self.saved = self.loop.progress.step
        self.loader.go_on(self.loop.progress.step, self.loop.progress.images)
        if state["data"]["position"]:
            self.loader.load_state_dict(state["data"]["position"])
        done, asked = self.loop.progress.step, self.config.training.steps
        if asked < done:
            raise UserError(f"{self.out} has done {done:,} steps: --training.steps {asked} lies behind; ask for more")
        if asked == done:
            say(f"all {done:,} steps are done already; for more give --training.steps")
        else:
            say(f"going on from step {done:,} ({checkpoint.path})")
        if state["data"]["fingerprint"] != self.dataset.fingerprint:
            say("the data are no longer those of the checkpoint: the run goes on, but not as it would have")
        now = {"description": str(self.loop.engine), "torch": torch.__version__}
        if state["engine"] == now:
            self.loop.micro_batch = state["micro_batch"]  # smaller than chosen, where memory had run out
        else:
            say(f"the checkpoint was computed on {state['engine']['description']}: expect other rounding")

    def _check_classes(self, before: list[str] | None) -> None:
        """Refuse data whose classes have other numbers than in the checkpoint; early checkpoints did not name them."""
        now = self.dataset.class_names
        if before is None or now is None or before == now:
            return
        number, was, is_now = next((n, a, b) for n, (a, b) in enumerate(zip_longest(before, now)) if a != b)
        raise UserError(
            f"class {number} of {self.config.data.source} was {was or 'none'} and is now {is_now or 'none'}: give the "
            f"classes the names they had, or begin another run with --init {self.out} --out NEW"
        )

    def _kept(self) -> str:
        steps = self.checkpoints.steps()
        return (
            f"the newest good checkpoint is {self.checkpoints.path(steps[-1])}" if steps else "there was no checkpoint"
        )


def train(
    config: Config,
    out: str | Path,
    *,
    init: str | Path | Model | None = None,
    resume: bool = False,
    overwrite: bool = False,
    evaluator: Evaluator | None = None,
) -> Path:
    """Train in the run directory `out`; returns it, with the averaged weights in out/model.

    Args:
        config: see `load_config`.
        init: a model whose weights, network and process the run starts from.
        resume: go on from the newest good checkpoint in `out`.
        overwrite: begin afresh where `out` holds a run already.
        evaluator: called every `training.evaluate_every` steps.

    Raises:
        UserError: what was asked for is not possible.
        RunStopped: numbers that are not finite, no space left, a lost process; what was saved stays.
        KeyboardInterrupt, SystemExit(143): on SIGINT and SIGTERM, after saving.
    """
    accelerator, out = launch(), user_path(out)
    with (
        explained_losses(accelerator, out),
        reproducible_kernels(accelerator.device),
        contextlib.ExitStack() as stack,
    ):
        on_main(accelerator, lambda: stack.enter_context(claimed(out, resume=resume, overwrite=overwrite)))
        run = Run(config, out, accelerator, init=init, resume=resume, evaluator=evaluator)
        stack.callback(run.close)
        run.open()
        with deferred_signals() as request:
            signal = run.loop.run(request, run.log, run.after_step)
            if signal is not None:
                run.checkpoint()
                accelerator.print(f"saved at step {run.loop.progress.step:,}; resume with ddpm train --resume {out}")
                request.leave(signal)
    return out


@contextlib.contextmanager
def explained_losses(accelerator: Accelerator, out: Path) -> Iterator[None]:
    """When another process of the run is gone, say so, and what to do."""
    try:
        yield
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        raise RunStopped(
            f"process {accelerator.process_index} lost another process of the run; go on from the last checkpoint: "
            f"ddpm train --resume {out}"
        ) from error
