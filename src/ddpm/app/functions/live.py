"""Watching a sampler while it runs: its callback turned into an iterator that can be closed at any time."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event
from typing import TypeVar

from ddpm.samplers.step import Callback, Step

T = TypeVar("T")
PAUSE = 0.2  # seconds between two looks at the steps


class Cancelled(Exception):
    """Raised inside a sampler whose iterator was closed."""


def live(work: Callable[[Callback], T]) -> Iterator[Step | T]:
    """Run `work(callback)` in a thread: yields the newest `Step` now and then, and at last what `work` returns.

    Closing the iterator stops the work at its next step; nobody waits for that.
    """
    newest: queue.Queue[Step] = queue.Queue(maxsize=1)
    stop = Event()

    def callback(step: Step) -> None:
        if stop.is_set():
            raise Cancelled
        with suppress(queue.Empty):
            newest.get_nowait()  # not seen in time: the newer one takes its place
        newest.put(step)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
    try:
        future = pool.submit(work, callback)
        while not future.done():
            wait([future], timeout=PAUSE)
            with suppress(queue.Empty):
                yield newest.get_nowait()
        yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=False)
