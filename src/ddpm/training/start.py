"""Start a run, or go on with one: the directory claimed, signals deferred, lost processes explained."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from ddpm.errors import RunStopped
from ddpm.model import Model
from ddpm.training.config import Config
from ddpm.training.directory import claim
from ddpm.training.interrupt import deferred_signals
from ddpm.training.processes import launch, lost_peer, on_main
from ddpm.training.reproducible import reproducible_kernels
from ddpm.training.run import Evaluator, Run


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
    accelerator, out = launch(), Path(out)
    with explained_losses(accelerator, out), reproducible_kernels(accelerator.device):
        lock = on_main(accelerator, lambda: claim(out, resume, overwrite))
        try:
            run = Run(config, out, accelerator, init=init, resume=resume, evaluator=evaluator)
            try:
                run.open()
                with deferred_signals() as request:
                    signal = run.loop.run(request, run.log, run.after_step)
                    if signal is not None:
                        run.checkpoint()
                        accelerator.print(f"saved at step {run.loop.progress.step:,}; go on: ddpm train --resume {out}")
                        request.leave(signal)
            finally:
                run.close()
        finally:
            if lock is not None:
                lock.release()
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
