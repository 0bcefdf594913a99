"""What a press of a button does: it runs a generator, shows its steps, and ends it when Stop is pressed."""

import functools
import inspect
import json
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from contextvars import ContextVar
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import gradio as gr

from ddpm.app.outcome import QUIET, Outcome, running
from ddpm.common.errors import RunStopped, UserError
from ddpm.samplers.algorithms import Callback, Step

T = TypeVar("T")
PAUSE = 0.2  # seconds between two updates


class Cancelled(Exception):
    """Raised inside a sampler after its iterator was closed, and in the handler of a press that was stopped.

    `step`: the last one that the handler was given; None before the first.
    """

    def __init__(self, step: Step | None = None):
        super().__init__()
        self.step = step


_at_work: dict[Thread, Event] = {}
_device = Lock()  # one sampler at a time: two would only share the device
_press: ContextVar[float | None] = ContextVar("press", default=None)  # the number of the press that is handled here
_stopped: deque[float] = deque(maxlen=1000)  # numbers of presses, also of those that still wait


def live(work: Callable[[Callback], T]) -> Generator[Step | T, None, None]:
    """Run `work(callback)` in a thread; yield the newest `Step` a few times per second, then the result of `work`.

    Closing the iterator stops the work at its next step, without waiting for it. Stop does the same from the page, and
    raises `Cancelled` here.
    """
    press, step = _press.get(), None
    newest: queue.Queue[Step] = queue.Queue(maxsize=1)
    outcome: Future[T] = Future()
    stop = Event()

    def callback(step: Step) -> None:
        if stop.is_set():
            raise Cancelled
        with suppress(queue.Empty):
            newest.get_nowait()  # not shown in time: replace it with the newer step
        newest.put(step)

    def run() -> None:
        try:
            with _device:
                if stop.is_set():  # while it waited
                    raise Cancelled
                outcome.set_result(work(callback))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            del _at_work[thread]

    # a daemon, because the interpreter would wait for any other thread when it exits
    thread = Thread(target=run, name="sampling", daemon=True)
    _at_work[thread] = stop
    thread.start()
    try:
        while not outcome.done():
            if press is not None and press in _stopped:
                raise Cancelled(step)
            with suppress(queue.Empty):
                step = newest.get(timeout=PAUSE / 4)
                yield step
                wait([outcome], timeout=PAUSE)
        if isinstance(outcome.exception(), Cancelled):
            raise RunStopped("the server has ended")
        yield outcome.result()
    finally:
        stop.set()


def stop_press(number: float) -> None:
    """End the handler of a press, also if it still waits for the model."""
    _stopped.append(number)


def stop_all(patience: float) -> None:
    """Stop everything that `live` runs, and wait up to `patience` seconds for it."""
    at_work = dict(_at_work)
    for stop in at_work.values():
        stop.set()
    deadline = time.monotonic() + patience
    for thread in at_work:
        if thread.is_alive():  # one that has not started yet will find that it is stopped
            thread.join(max(0, deadline - time.monotonic()))


def pace(step: Step, began: float) -> str:
    """Say how far a run is that began at `time.monotonic()` = `began`."""
    done, left = step.index + 1, step.steps - step.index - 1
    seconds = (time.monotonic() - began) / done * left
    time_left = f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
    return running(f"Step {done} of {step.steps}" + (time_left if seconds >= 1 else ""))


def buttons(text: str) -> tuple[gr.Button, gr.Button]:
    """Create a button and the Stop that takes its place during a run."""
    with gr.Row(elem_classes="action"):
        start = gr.Button(text, variant="primary", elem_classes="start", min_width=120)
        stop = gr.Button("Stop", elem_classes="stop", min_width=120)
    return start, stop


WAITING = running("Waiting for the model …")
WAITED = "Stopped while it waited."


def connect(
    buttons: tuple[gr.Button, gr.Button], function: Callable, inputs: list, outcome: Outcome, *, before=None
) -> gr.Number:
    """Run `function` when the first button is pressed, until the second is. Return the number of the press.

    Args:
        function: a generator of the values of `outcome.outputs`.
        before: (inputs, outputs, JavaScript) of what the browser does first.
    """
    (start, stop), status, press = buttons, outcome.status, gr.Number(visible=False)
    own, changed, script = before or ([], [], "() => []")
    script = f"async (...all) => (await ddpm.ready(), [ddpm.random(), {json.dumps(WAITING)}, ...({script})(...all)])"
    pressed = start.click(None, own, [press, status, *changed], js=script, **QUIET)
    run_after(pressed, function, press, inputs, outcome)
    name = outcome.name
    gr.on([], show_user_errors(function), inputs, outcome.outputs, api_name=name, concurrency_id="model")
    # Gradio's own way to stop a run fails before the server has numbered it, and leaves what it showed last
    stopping = f"(now) => now === {json.dumps(WAITING)} ? {json.dumps(WAITED)} : {json.dumps(running('Stopping …'))}"
    stop.click(None, status, status, js=stopping, **QUIET)
    stop.click(stop_press, press, None, queue=False, **QUIET)
    return press


def run_after(event: Any, function: Callable, press: gr.Number, inputs: list, outcome: Outcome) -> None:
    """Run `function` after an event of the page that has set the number of a press, until Stop is pressed."""
    run = event.then(
        until_stopped(show_user_errors(function)),
        [press, *inputs],
        outcome.outputs,
        concurrency_id="model",
        trigger_mode="multiple",  # a press just after Stop must not be lost because the old run is still ending
        **QUIET,
    )
    outcome.keep(run)


def stopped(step: Step | None) -> str:
    """Return the status of a run that was stopped after a step, if there was one."""
    return f"Stopped at step {step.index + 1} of {step.steps}." if step else "Stopped."


def until_stopped(function: Callable) -> Callable:
    """Wrap a generator so that its first argument is the number of a press, and that it ends if that was stopped.

    A negative number runs nothing.
    """

    def run(press: float, *arguments: Any) -> Iterator[Any]:
        if press < 0 or press in _stopped:
            # there is nothing to run, or it was stopped while it waited; the page says so already
            yield gr.skip()
            return
        with closing(function(*arguments)) as steps:
            while True:
                _press.set(press)  # every time, because Gradio runs each step in a context of its own
                try:
                    values = next(steps)
                except StopIteration:
                    return
                except Cancelled as end:
                    yield [stopped(end.step), *values[1:]]
                    return
                yield values

    return run


def show_user_errors(function: Callable) -> Callable:
    """Wrap a handler so that its `UserError` or `RunStopped` appears on the page as one line."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*arguments: Any) -> Any:
            try:
                yield from function(*arguments)
            except (UserError, RunStopped) as error:
                raise _shown(error) from error

        return generator

    @functools.wraps(function)
    def plain(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (UserError, RunStopped) as error:
            raise _shown(error) from error

    return plain


def as_sentence(error: Exception) -> str:
    """Return the message of an error as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:] + "."


def _shown(error: Exception) -> gr.Error:
    return gr.Error(as_sentence(error), duration=5, print_exception=False, title="That did not work")
