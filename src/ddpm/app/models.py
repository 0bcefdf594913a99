"""The models that the page can switch to, each with a page of its own on the same server."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import anyio.from_thread
import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddpm.app.press import as_sentence
from ddpm.app.runs import find_runs, run_path
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.files import is_model
from ddpm.interop.layouts import is_checkpoint
from ddpm.model import BUNDLED, find_model
from ddpm.training.checkpoint import model_step

MOST_OPEN = 4  # pages beside the first; the one opened first is closed for the next
MOST_CHECKPOINTS = 20  # of a run: the newest


# seen until Gradio has loaded, also while one model's page gives way to another's
WORDS = b"""<style>
body:not(:has(.masthead))::before {
  content: "Opening the page \\2026"; position: fixed; inset: 40vh 0 auto; text-align: center;
  font: 16px system-ui, sans-serif;
}
</style>"""


class Opening:
    """ASGI middleware that ends every page of HTML with `WORDS`: what Gradio adds comes later."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        html = False

        async def send_more(message: Message) -> None:
            nonlocal html
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                html = headers.get("content-type", "").startswith("text/html")
                if html and "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(WORDS))
            elif html and not message.get("more_body"):
                message = {**message, "body": message.get("body", b"") + WORDS}
            await send(message)

        await self.app(scope, receive, send_more)


def opening() -> dict[str, Any]:
    """Return what the server of a page is made with; Gradio changes it, so each page takes its own."""
    return {"middleware": [Middleware(Opening)]}


@dataclass(frozen=True)
class Opened:
    """A page at `path`; setting `closed` ends it. `version` tells whether the model's files are still the same."""

    path: str
    version: float
    closed: asyncio.Event
    route: Any


@dataclass
class Models:
    """What the switcher offers, and the pages that were opened with it.

    Args:
        given: names of models, as on the command line; the first is the one that the page begins with.
        runs: folder of run directories.
        page: builds the page of a model, by its name.
        look: arguments of `gr.mount_gradio_app`, the same for all pages.
    """

    given: Sequence[str]
    runs: Path
    page: Callable[[str], gr.Blocks]
    look: dict[str, Any]
    server: FastAPI | None = None  # of the first page
    opened: dict[str, Opened] = field(default_factory=dict)
    count: int = 0
    lock: Lock = field(default_factory=Lock)
    tasks: set[asyncio.Task] = field(default_factory=set)

    def groups(self) -> dict[str, dict[str, str]]:
        """Return the names that can be opened with what they are called in the list, by their kind."""
        runs = {name: run_path(self.runs, name) for name in find_runs(self.runs)}
        found = {
            "Given": {name: name for name in self.given},
            "Bundled": {name: name for name in BUNDLED if name not in self.given},
            "Runs": {str(run): name for name, run in runs.items() if is_model(run / "model")},
            "Checkpoints": {
                str(path): f"{name}, step {int(path.name):,}" for name, run in runs.items() for path in checkpoints(run)
            },
        }
        return {kind: names for kind, names in found.items() if names}

    def open(self, name: str) -> dict[str, str]:
        """Return the address of a model's page, for the browser; or why it cannot be opened."""
        if self.server is None or not any(name in names for names in self.groups().values()):
            return {"error": f"There is no model {name} to switch to."}
        if name == self.given[0]:
            return {"path": "/"}
        try:
            with self.lock:  # two visitors may ask for the same one
                return {"path": self._opened(name).path}
        except (UserError, RunStopped) as error:
            return {"error": as_sentence(error)}

    def _opened(self, name: str) -> Opened:
        version = max(path.stat().st_mtime for path in find_model(name).rglob("*"))
        known = self.opened.pop(name, None)
        if known and known.version != version:
            anyio.from_thread.run_sync(self._close, known)
            known = None
        if len(self.opened) >= MOST_OPEN:
            anyio.from_thread.run_sync(self._close, self.opened.pop(next(iter(self.opened))))
        if known is None:
            self.count += 1
            known = anyio.from_thread.run(self._mount, self.page(name), f"/models/{self.count}", version)
        self.opened[name] = known
        return known

    async def _mount(self, page: gr.Blocks, path: str, version: float) -> Opened:
        """Add a page to the running server, before the route of the first page, which takes every address."""
        parent, ready = FastAPI(), asyncio.Event()
        gr.mount_gradio_app(parent, page, path, app_kwargs=opening(), **self.look)
        opened = Opened(path, version, asyncio.Event(), parent.routes[-1])

        async def serve() -> None:
            async with parent.router.lifespan_context(parent):  # starts the page's queue
                ready.set()
                await opened.closed.wait()

        assert self.server is not None
        task = asyncio.create_task(serve())
        self.tasks.add(task)  # the event loop itself keeps none
        task.add_done_callback(self.tasks.discard)
        await ready.wait()
        self.server.router.routes.insert(0, opened.route)
        return opened

    def _close(self, opened: Opened) -> None:
        assert self.server is not None
        self.server.router.routes.remove(opened.route)
        opened.closed.set()


def checkpoints(run: Path) -> list[Path]:
    """Return the newest checkpoints of a run that hold another model than the run's own, the newest first."""
    own = model_step(run / "model")
    found = [path for path in (run / "checkpoints").glob("*") if is_checkpoint(path) and int(path.name) != own]
    return sorted(found, reverse=True)[:MOST_CHECKPOINTS]
