"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM  # the exit code that shells and schedulers expect of a terminated process
SAID = b"\nstopping after this step and what is due then; once more to leave at once, without a checkpoint\n"


class StopRequest:
    """Which signal asked this process to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        with contextlib.suppress(OSError):  # not print: the signal may have come in the midst of one
            os.write(2, SAID)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def leave(self, number: int) -> None:
        """End as the signal would have ended the process: KeyboardInterrupt, or exit code 143."""
        if number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt


@contextlib.contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """While inside, the first SIGINT or SIGTERM is only noted; a second one acts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers; whoever trains in another stops it by its own means
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
