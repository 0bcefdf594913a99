"""Work spread over threads; Pillow and numpy let go of the interpreter while they decode."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
CHUNK = 16  # items a task


def workers() -> int:
    """How many threads the machine gives this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 32)


def in_parallel(function: Callable[[int], T], count: int) -> Iterator[T]:
    """function(0), function(1), … in order, a few chunks ahead of whoever takes them, so that memory stays flat."""

    def chunk(start: int) -> list[T]:
        return [function(index) for index in range(start, min(start + CHUNK, count))]

    pool = ThreadPoolExecutor(workers())
    try:
        ahead: deque[Future[list[T]]] = deque()
        for start in range(0, count, CHUNK):
            ahead.append(pool.submit(chunk, start))
            if len(ahead) > 2 * workers():
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
