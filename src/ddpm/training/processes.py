"""The processes of a run: one, or as many as torchrun or `accelerate launch` started."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.hardware import default_device

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # rank 0 may write a large checkpoint while the others wait for it


def launch() -> Accelerator:
    """Join the other processes, if there are any. Number formats are ours: the network casts its own weights."""
    return Accelerator(
        cpu=default_device().type == "cpu",
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Do something in the first process only. If it fails there, every process leaves, and only the first explains."""
    result, code = None, 0
    failure: UserError | RunStopped | None = None
    if accelerator.is_main_process:
        try:
            result = action()
        except (UserError, RunStopped) as error:
            failure, code = error, 2 if isinstance(error, UserError) else 1
    if accelerator.num_processes > 1:
        (code,) = broadcast_object_list([code])
    if failure is not None:
        raise failure
    if code:
        raise SystemExit(code)
    return result


def lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process of the run is gone."""
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "peer", "timed out", "aborted")
    return torch.distributed.is_initialized() and any(sign in text for sign in signs)
