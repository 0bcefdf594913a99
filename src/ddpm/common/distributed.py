"""Share work between the processes that torchrun or `accelerate launch` started for one command.

A command that was started alone is process 0 of 1. There every function here works too, and does no communication.
All processes must make the same calls in the same order, as with any collective operation.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddpm.common.errors import RunStopped, UserError
from ddpm.common.hardware import default_device

T = TypeVar("T")
TIMEOUT = timedelta(hours=1)  # the others wait while the first process writes a checkpoint or a report


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def join() -> None:
    """Connect to the other processes. The functions below do it at their first call.

    Gloo carries tensors and objects on the CPU, NCCL tensors on GPUs.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if default_device().type == "cuda":
        torch.cuda.set_device(default_device())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        join()
        dist.barrier()


def my_share(num: int) -> range:
    """Return the numbers from 0..num-1 that belong to this process: contiguous, equal to within one."""
    return range(rank() * num // world_size(), (rank() + 1) * num // world_size())


def gather(items: Iterable[T]) -> list[T]:
    """Return the items of all processes in every process, in the order of ranks. They are pickled, so keep them small.

    After `results = gather(work(i) for i in my_share(num))`, `results[i]` belongs to number i.
    """
    mine = list(items)
    if world_size() == 1:
        return mine
    join()
    everywhere: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(everywhere, mine)
    return [item for items_of_rank in everywhere for item in items_of_rank]


def all_sum(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place, and return it. Its shape must be the same in each."""
    if world_size() > 1:
        join()
        dist.all_reduce(tensor)
    return tensor


def on_main(action: Callable[[], T]) -> T | None:
    """Run `action` in the main process while the others wait; return its result there, and None in the others.

    Raises:
        UserError, RunStopped: what `action` raised, in the main process.
        SystemExit: in the other processes, with the exit code of that error, so that only one process explains it.
    """
    result, code = None, 0
    failure: UserError | RunStopped | None = None
    if is_main():
        try:
            result = action()
        except (UserError, RunStopped) as error:
            failure, code = error, 2 if isinstance(error, UserError) else 1
    if world_size() > 1:
        join()
        message = [code]
        dist.broadcast_object_list(message)
        code = message[0]
    if failure is not None:
        raise failure
    if code:
        raise SystemExit(code)
    return result


def print_on_main(*words: object) -> None:
    """Print in the main process only."""
    if is_main():
        print(*words, flush=True)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process has ended."""
    signs = ("connection closed", "connection reset", "broken pipe", "peer", "timed out", "aborted")
    return dist.is_initialized() and any(sign in str(error).lower() for sign in signs)
